"""Splits of an evaluation set by folder name, for evaluation and for decontamination."""

NAMES = ("train", "val", "validation", "test")
"""Names of splits, which no class folder has."""
TAR_MARK = "nshards.txt"
"""File in each split of a CLIP_benchmark folder of tars."""


def is_named_as_split(folder: str) -> bool:
    """Whether a folder's name is that of a split, ignoring case."""
    return folder.lower() in NAMES


def is_training_split(split: str) -> bool:
    """Whether a split is the training split, ignoring case."""
    return split.lower() == "train"
