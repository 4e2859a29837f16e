"""Paths of the files of one shard."""


def shard_name(ordinal: int) -> str:
    """Return the number in every file name of a shard: five digits, more when needed."""
    return f"{ordinal:05d}"


def commit_path(ordinal: int) -> str:
    """Path of a shard's commit record."""
    return f"commits/{shard_name(ordinal)}.json"


def metadata_path(ordinal: int) -> str:
    """Path of a shard's metadata: all columns."""
    return f"metadata/metadata_{shard_name(ordinal)}.parquet"


def lookup_path(ordinal: int) -> str:
    """Path of a shard's look-up file: the metadata columns that search results show."""
    return f"rows/rows_{shard_name(ordinal)}.arrow"


def rejects_path(ordinal: int) -> str:
    """Path of a shard's rejects."""
    return f"rejects/rejects_{shard_name(ordinal)}.parquet"


_FOLDERS = {"image": "img_emb", "text": "text_emb"}


def vectors_path(ordinal: int, modality: str) -> str:
    """Path of a shard's vectors of one modality."""
    return f"{_FOLDERS[modality]}/{_FOLDERS[modality]}_{shard_name(ordinal)}.npy"
