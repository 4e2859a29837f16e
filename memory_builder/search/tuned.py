"""What tuning measured for queries of a modality: search parameters and the recall they reach."""

from collections.abc import Mapping
from typing import Any


def tuned_for(tuned: Mapping[str, dict[str, Any]], query_modality: str | None) -> list[dict[str, Any]]:
    """Of ``tuned`` (query modality → parameters and recall), the entry of one modality; all for bare vectors (None)."""
    return [tuned[query_modality]] if query_modality is not None and query_modality in tuned else list(tuned.values())


def stated_recall(tuned: Mapping[str, dict[str, Any]], query_modality: str | None) -> dict[str, float] | None:
    """``recall@10``, tie-aware, and ``strict_recall@10``, measured at the tuned parameters on held-out queries.

    Of bare vectors (None) the lesser of both modalities; None where the index has too few rows to measure with.
    """
    measured = tuned_for(tuned, query_modality)
    names = ("recall@10", "strict_recall@10")
    return {name: round(min(one[name] for one in measured), 4) for name in names} if measured else None
