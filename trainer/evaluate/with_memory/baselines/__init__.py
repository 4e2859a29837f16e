"""Baselines that use a memory without training, or with a linear head only.

Each is a frozen dataclass of hyperparameters with a ``score`` method, and a GRID of them with the default first.
"""
