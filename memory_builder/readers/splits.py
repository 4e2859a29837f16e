"""What folders of an evaluation set are its splits: one rule for what is measured, and for what is kept out."""

NAMES = ("train", "val", "validation", "test")
"""Names that no class folder of a set without splits has."""
TAR_MARK = "nshards.txt"
"""In each split of a CLIP_benchmark folder of tars."""


def is_named_as_split(folder: str) -> bool:
    """Whether a folder of this name is a split, in upper case or lower."""
    return folder.lower() in NAMES


def is_to_learn_from(split: str) -> bool:
    """Whether a split is the one that models may learn from."""
    return split.lower() == "train"
