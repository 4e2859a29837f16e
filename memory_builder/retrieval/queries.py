"""Make numbered queries, in blocks, from classes and templates."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memory_builder.errors import UsageError
from memory_builder.model.templates import fill
from memory_builder.retrieval.classes import Class
from memory_builder.retrieval.config import Mode, QueryConfig, query_modality_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """A query of one class."""

    number: int
    """Number among all queries of a run."""
    label: int
    name: str
    """Name of the class."""
    inputs: tuple[str, ...]
    """Texts, or picture files; the query is the mean of their embeddings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Queries of one mode, searched together."""

    number: int
    mode: Mode
    queries: tuple[Query, ...]


def blocks_of(classes: Sequence[Class], templates: Sequence[str], config: QueryConfig) -> list[Block]:
    """Make all queries, in blocks of at most ``block_queries``.

    Raises:
        UsageError: a mode has no queries.
    """
    blocks: list[Block] = []
    n_queries = 0
    for mode in config.modes:
        of_mode = list(_query_inputs(classes, templates, mode, config.average))
        if not of_mode:
            raise UsageError(f"--mode {mode} needs example pictures, and no class has any: add them to the class file")
        queries = [
            Query(number=n_queries + i, label=c.label, name=c.name, inputs=own) for i, (c, own) in enumerate(of_mode)
        ]
        n_queries += len(queries)
        for start in range(0, len(queries), config.block_queries):
            block = tuple(queries[start : start + config.block_queries])
            blocks.append(Block(number=len(blocks), mode=mode, queries=block))
    return blocks


def _query_inputs(
    classes: Sequence[Class], templates: Sequence[str], mode: Mode, average: bool
) -> Iterator[tuple[Class, tuple[str, ...]]]:
    for c in classes:
        of_class = (
            tuple(dict.fromkeys(fill(template, name) for name in c.names for template in templates))
            if query_modality_of(mode) == "text"
            else c.images
        )
        if average and of_class:
            yield c, of_class
        elif not average:
            yield from ((c, (one,)) for one in of_class)
