"""Lines and tables that commands print on standard output."""

import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from memory_builder.base.progress import duration
from memory_builder.storage.store import Store

if TYPE_CHECKING:
    from memory_builder.embedding.driver import EmbedReport


HINTS = {
    "no caption": "--require image takes pictures alone",
    "no image": "--require text takes captions alone",
}
"""Reject reason → advice to print with it."""


def print_embedded(report: "EmbedReport", *, can_retry: bool = True) -> bool:
    """Print the counts of a run of ``embed`` or ``import``; returns whether all shards succeeded."""
    print(
        f"{report.n_shards - len(report.failed)}/{report.n_shards} shards ({report.n_embedded} embedded now), "
        f"{report.n_rows:,} rows, {report.n_rejects:,} rejects, {report.n_partial} partial, "
        f"{duration(report.seconds)}" + (f", {report.n_retries} requests retried" if report.n_retries else "")
    )
    if report.reasons:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in report.reasons.items())
        hints = [hint for reason, hint in HINTS.items() if reason in report.reasons]
        print(f"rejects: {reasons}{'; ' * bool(hints)}{'; '.join(hints)}")
    for note, n in report.notes.items():
        print(f"{n:,} {note}")
    if report.failed:
        print_failures(report.failed, can_retry=can_retry)
    return not report.failed


def print_state(memory: str) -> None:
    """Print the current snapshot of a memory: rows, segments, deleted rows."""
    from memory_builder.maintenance.info import read_info

    info = read_info(Store(memory))
    print(f"snapshot {info.snapshot}: {info.rows:,} rows, {info.deleted:,} of them deleted")
    for modality, index in info.indexes.items():
        segments = " + ".join(f"{n:,}" for n in index["segments"])
        print(f"{modality} index: {segments} rows, {index['deleted']:,} of them deleted")


def print_failures(failed: dict[str, str], *, can_retry: bool = True) -> None:
    """Print failed shards with their errors to standard error."""
    rows = [{"shard": uri, "error": error} for uri, error in failed.items()]
    print_table(
        f"{len(failed)} shards failed; the same command tries them again"
        + ", with --retry-failed only them" * can_retry,
        ("shard", "error"),
        rows,
        sys.stderr,
    )


def print_indexes(indexes: dict[str, dict[str, Any]]) -> None:
    """Print each index with its recall, search parameters and latency by query modality."""
    rows = [
        {
            "keys": modality,
            "index": index["index_key"],
            "rows": f"{index['rows']:,}",
            "segments": len(index["segments"]),
            "deleted": f"{index['deleted']:,}",
            "MB": f"{index['bytes'] / 1e6:,.1f}",
            "query": side,
            "recall@10": f"{measured['recall@10']:.3f}",
            "strict": f"{measured['strict_recall@10']:.3f}",
            "nprobe": measured["nprobe"],
            "refine": measured["refine"],
            "p50 ms": f"{1e3 * measured['p50_s']:.2f}",
        }
        for modality, index in indexes.items()
        for side, measured in index["queries"].items()
    ]
    if rows:
        print_table("indexes", tuple(rows[0]), rows)
    else:
        print(f"indexes: {', '.join(indexes) or 'none'}")


def print_curves(store: Store) -> None:
    """Print recall against work for each index and query modality."""
    from memory_builder.indexing.curve import curve_rows, read_curves

    for curve in read_curves(store):
        rows = curve_rows(curve)
        print_table(
            f"\n{curve.name}: {curve.query_modality} → {curve.modality}, recall for bytes touched a query for ten rows",
            tuple(rows[0]),
            rows,
        )


def print_table(title: str, columns: tuple[str, ...], rows: list[dict[str, Any]], stream: Any = None) -> None:
    """Print a plain table; a file or pipe gets long lines instead of folded ones."""
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column not in ("caption", "error", "problem", "shard"))
    for row in rows:
        table.add_row(*(Text(str(row[column])) for column in columns))  # Text: captions may look like markup
    console = Console(file=stream or sys.stdout)
    if not console.is_terminal:
        console.width = 10_000  # a file or pipe has no edge to fold at
    console.print(table)
