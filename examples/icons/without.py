"""A memory without some of its rows, made of the files of another, which stays as it is."""

import os
import shutil
from pathlib import Path

from iconify import IconsError

from memory_builder import Memory
from memory_builder.cli import main as memory_builder

WHOLE = "whole"
"""File that is there once the rows are gone, and says which, and of what."""


def memory_without(memory: Path, out: Path, *which: str) -> None:
    """Link a memory's files and delete rows there; nothing is done if the same was done before.

    Args:
        memory: whose files they are.
        out: folder of the new memory; what lies there is replaced unless it is this, whole.
        which: flags of ``memory-builder delete``.

    Raises:
        IconsError: the deletion failed.
    """
    what = f"{memory} at snapshot {Memory.open(memory).snapshot.number} without {' '.join(which)}\n"
    if (out / WHOLE).exists() and (out / WHOLE).read_text("utf-8") == what:
        return
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(memory, out, copy_function=os.link)
    if memory_builder(["delete", str(out), *which]):
        raise IconsError(f"{out}: its rows were not deleted, see above. The same command goes on from there")
    (out / WHOLE).write_text(what, encoding="utf-8")
