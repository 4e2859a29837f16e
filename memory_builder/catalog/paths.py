"""Paths of the files of one shard."""


def shard_name(ordinal: int) -> str:
    """The number in every file name of a shard: five digits, more when needed."""
    return f"{ordinal:05d}"


def commit_path(ordinal: int) -> str:
    """Where a shard's commit record lies."""
    return f"commits/{shard_name(ordinal)}.json"


def metadata_path(ordinal: int) -> str:
    """Where all that is known of a shard's pairs lies."""
    return f"metadata/metadata_{shard_name(ordinal)}.parquet"


def lookup_path(ordinal: int) -> str:
    """Where what is looked up most of a shard's pairs lies."""
    return f"rows/rows_{shard_name(ordinal)}.arrow"


def rejects_path(ordinal: int) -> str:
    """Where the pairs that a shard rejected are named."""
    return f"rejects/rejects_{shard_name(ordinal)}.parquet"


_FOLDERS = {"image": "img_emb", "text": "text_emb"}


def vectors_path(ordinal: int, modality: str) -> str:
    """Where the vectors of one modality of one shard lie."""
    return f"{_FOLDERS[modality]}/{_FOLDERS[modality]}_{shard_name(ordinal)}.npy"
