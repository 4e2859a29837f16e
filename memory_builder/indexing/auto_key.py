"""``--index-key auto``: choose the cheapest index key that reaches the target recall, by trials on a sample.

A trial has as many rows a list as the whole index would have, so that the cost of scanning a list and the loss of
skipping it are the same; it is tuned by the same code, with held-out rows of its own.
"""

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import faiss

from memory_builder.ann.kmeans import Device, adder, choose_backend
from memory_builder.ann.parts import Part, record_part, write_faiss
from memory_builder.ann.quantizer import EXACT_KEY, choose_key, draw_split, memory_bytes, n_lists, train_quantizer
from memory_builder.base.log import logger
from memory_builder.base.runner import Runner, available_threads, run_all
from memory_builder.base.types import Ids, Modality, Scores
from memory_builder.catalog.description import read_description
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.rows import Rows
from memory_builder.catalog.snapshots import Snapshot
from memory_builder.catalog.tombstones import current_tombstones
from memory_builder.errors import IndexBuildError
from memory_builder.indexing.recall import TRUTH_K
from memory_builder.indexing.train import read_sample
from memory_builder.indexing.tuning import held_out_queries, tune_query_modality
from memory_builder.search.open_index import OpenIndex
from memory_builder.storage.records import read_sound_record, strict_record, write_record
from memory_builder.storage.store import Store

TRIAL_ROWS = 200_000
LEAST_LISTS = 16
SAMPLE = "00000-00000"
"""Name of a trial's only part, in a folder of its own."""


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Result of one candidate index key; stored in ``index.json``."""

    index_key: str
    trial_key: str
    """Index key with the number of lists scaled to the sample."""
    n_rows: int
    """Number of rows in the sample."""
    index_bytes: int
    """Estimated bytes of the whole index."""
    sides: dict[str, dict[str, Any]]
    """Query modality → chosen search parameters and their recall."""
    reached: bool
    """Whether queries of every modality reach the target."""
    work_bytes: float
    """Bytes touched by one query of each modality, summed."""


def candidate_keys(n_rows: int, d: int, max_memory: str) -> list[str]:
    """List candidate keys within the budget: autofaiss's, and 4-bit RaBitQ and 4-bit PQ with the same lists.

    Raises:
        IndexBuildError: no key fits.
    """
    budget = memory_bytes(max_memory)
    try:
        first = choose_key(n_rows, d, max_memory)
    except IndexBuildError:
        roomy = choose_key(n_rows, d, f"{16 * n_rows * (d + 8) + (1 << 30)}B")
        others = _four_bits(roomy, n_rows, d, budget)
        if not others:
            raise
        return others
    return [first] if first == EXACT_KEY else [first, *_four_bits(first, n_rows, d, budget)]


def _four_bits(key: str, n_rows: int, d: int, budget: int) -> list[str]:
    if key == EXACT_KEY:
        return []
    (lists,) = re.findall(r"IVF\d+(?:_HNSW\d+)?", key)
    by_pq = [f"{lists},PQ{d // share}x4np" for share in (2, 4, 8) if d % share == 0]
    fitting = [other for other in by_pq if index_bytes(other, n_rows, d) <= budget]
    rabitq = f"{lists},RaBitQ4"
    return [*([rabitq] if index_bytes(rabitq, n_rows, d) <= budget else []), *fitting[:1]]


def index_bytes(key: str, n_rows: int, d: int) -> int:
    """Estimate the bytes of an IVF index of this key: codes, ids, centroids and their HNSW graph."""
    small = faiss.index_factory(d, re.sub(r"_HNSW\d+", "", _with_lists(key, 1)), faiss.METRIC_INNER_PRODUCT)
    ivf = faiss.extract_index_ivf(small)
    links = re.search(r"_HNSW(\d+)", key)
    list_bytes = 4 * ivf.d + (8 * int(links[1]) if links else 0)
    return int(n_rows * (ivf.code_size + 8) + n_lists(key) * list_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialTask:
    """Worker that builds and tunes index keys on a sample and records each result in ``folder``."""

    memory: Store | str
    folder: str
    modality: Modality
    ordinals: tuple[int, ...]
    target_recall: float
    train_threads: int
    seed: int
    device: Device
    deleted_as_of: Snapshot | None = None
    """Snapshot whose deleted rows are left out of the sample; without it, all rows are used."""
    wants_gpu: bool = True

    def start(self) -> Callable[[str], Trial]:
        return partial(run_trial, self)


def choose_by_trials(task: TrialTask, n_rows: int, d: int, max_memory: str, runner: Runner) -> tuple[str, list[Trial]]:
    """(index key with the least work that reaches the target, results of all candidates).

    If none reaches it, the key with the highest recall.
    """
    candidates = candidate_keys(n_rows, d, max_memory)
    if len(candidates) == 1:
        return candidates[0], []
    results = {}
    for key, trial in run_all(runner, task, candidates):
        results[key] = trial
        recalls = ", ".join(
            f"{query_modality} {setting['recall@10']:.3f}" for query_modality, setting in trial.sides.items()
        )
        logger.info(f"tried {key}: recall@10 {recalls or 'not measured'}, {trial.work_bytes / 1e3:,.0f} kB a query")
    trials = [results[key] for key in candidates]
    return best_trial(trials).index_key, trials


def best_trial(trials: list[Trial]) -> Trial:
    """The trial with the least work that reaches the target; else the one with the highest recall of its worse
    modality."""
    reaching = [trial for trial in trials if trial.reached]
    if reaching:
        return min(reaching, key=lambda trial: trial.work_bytes)
    return max(trials, key=lambda t: min((setting["recall@10"] for setting in t.sides.values()), default=0.0))


def run_trial(task: TrialTask, key: str) -> Trial:
    """Build an index of this key on the sample, tune it and record the result, unless it is recorded."""
    store = Store(task.memory)
    name = f"{task.folder}/trial-{key.replace(',', '-')}.json"
    finished = read_sound_record(store, name, Trial)
    if finished is not None:
        return finished
    folded, d = Manifest.read_folded(store).commits, read_description(store).d
    commits = {ordinal: folded[ordinal] for ordinal in task.ordinals}
    rows = Rows(store, commits, d, current_tombstones(store, task.deleted_as_of))
    n_rows = rows.n_present(task.modality)
    held_out, sampled = (rows.ids_at(drawn, task.modality) for drawn in draw_split(n_rows, TRIAL_ROWS, task.seed))
    trial_key = _with_lists(key, max(LEAST_LISTS, round(n_lists(key) * len(sampled) / n_rows)))
    vectors = read_sample(rows, sampled, task.modality)
    with tempfile.TemporaryDirectory(prefix="memory-builder-trial-") as folder:
        index = _build(Store(folder), trial_key, vectors, sampled, task)
        sides = _tune(index, rows, held_out, vectors, sampled, task)
    trial = Trial(
        index_key=key,
        trial_key=trial_key,
        n_rows=len(sampled),
        index_bytes=index_bytes(key, n_rows, d),
        sides=sides,
        reached=all(setting["reached"] for setting in sides.values()),
        work_bytes=sum(setting["work_bytes"] for setting in sides.values()),
    )
    write_record(store, name, trial)
    return trial


def _with_lists(key: str, n: int) -> str:
    return re.sub(r"IVF\d+", f"IVF{n}", key)


def _build(local: Store, key: str, vectors: Scores, ids: Ids, task: TrialTask) -> OpenIndex:
    """Train the key on f32[n, d] rows, fill the index with them and open it, in a local folder."""
    backend = choose_backend(task.device)
    index = train_quantizer(key, vectors, threads=task.train_threads, backend=backend)
    _, digest = write_faiss(local, "index/trained.faiss", index)
    local.put("index/trained.json", json.dumps({"sha256": digest}).encode())
    faiss.omp_set_num_threads(available_threads())
    adder(index, backend)(vectors, ids)
    record_part(local, "index", Part(name=SAMPLE, ordinals=()), index, digest)
    return OpenIndex(local, "index", [SAMPLE])


def _tune(
    index: OpenIndex, rows: Rows, held_out: Ids, vectors: Scores, ids: Ids, task: TrialTask
) -> dict[str, dict[str, Any]]:
    """Query modality → chosen search parameters and their recall on the sample."""
    sides: dict[str, dict[str, Any]] = {}
    for query_modality, queries, own in held_out_queries(rows, held_out):
        scores, nearest = faiss.knn(queries, vectors, min(TRUTH_K, len(ids)), faiss.METRIC_INNER_PRODUCT)
        sides[query_modality], _ = tune_query_modality(
            index, rows, task.modality, queries, own, (scores, ids[nearest]), task.target_recall
        )
    return sides
