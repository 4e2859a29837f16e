"""Search parameters and recall that tuning measured for each query modality."""

from collections.abc import Mapping
from typing import Any


def tuned_for(tuned: Mapping[str, dict[str, Any]], query_modality: str | None) -> list[dict[str, Any]]:
    """Select the entry of ``tuned`` for one query modality; all entries for bare vectors (None)."""
    return [tuned[query_modality]] if query_modality is not None and query_modality in tuned else list(tuned.values())


def stated_recall(tuned: Mapping[str, dict[str, Any]], query_modality: str | None) -> dict[str, float] | None:
    """``recall@10`` (tie-aware) and ``strict_recall@10`` measured at the tuned search parameters on held-out queries.

    The lower one of both modalities for bare vectors (None); None for an index with too few rows to measure.
    """
    measured = tuned_for(tuned, query_modality)
    names = ("recall@10", "strict_recall@10")
    return {name: round(min(one[name] for one in measured), 4) for name in names} if measured else None
