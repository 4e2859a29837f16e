"""Text files of an evaluation set."""

from pathlib import Path

from memory_builder.errors import SourceError


def read_text(path: Path) -> str:
    """Read a file, with or without a byte-order mark.

    Raises:
        SourceError: the file is not UTF-8.
    """
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from None
