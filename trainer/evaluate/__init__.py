"""How good a model is on a set of pictures, with and without what a memory knows.

Sets are folders (``datasets``), embedded once (``features``) and shared by all tasks. A number never stands without an
interval (``intervals``), and no setting is ever chosen on the set it is measured on.
"""
