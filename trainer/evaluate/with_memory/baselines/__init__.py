"""What can be done with a memory and no training, or next to none: the rivals that anything trained must beat.

Each is a frozen class of settings with a ``score`` of evidence, and a GRID of them whose first is the default.
"""
