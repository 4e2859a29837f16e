"""Evaluation of a model on sets of pictures, with and without a memory.

Sets are folders (``datasets``), embedded once (``features``) and shared by all tasks. Every metric has a confidence
interval (``intervals``), and hyperparameters are never chosen on the test set.
"""
