"""A memory without some of its rows, made of the files of another, which stays as it is."""

import os
import shutil
from pathlib import Path

from iconify import IconsError

from memory_builder.cli import main as memory_builder

WHOLE = "whole"
"""File that is there once the rows are gone."""


def memory_without(memory: Path, out: Path, *which: str) -> None:
    """Link a memory's files and delete rows there; nothing is done if it was done before.

    Args:
        memory: whose files they are.
        out: folder of the new memory; what lies there is replaced unless it is whole.
        which: flags of ``memory-builder delete``.

    Raises:
        IconsError: the deletion failed.
    """
    if (out / WHOLE).exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(memory, out, copy_function=os.link)
    if memory_builder(["delete", str(out), *which]):
        raise IconsError(f"{out}: its rows were not deleted, see above. The same command goes on from there")
    (out / WHOLE).touch()
