"""The drivers that fill a memory: ``embed`` and ``import_embeddings``.

Each may be killed at any moment and started again; what is committed is not done again.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memory_builder.base.progress import Progress, say
from memory_builder.base.runner import Runner, run_one
from memory_builder.base.types import Modality
from memory_builder.catalog.create_memory import settle_description
from memory_builder.catalog.failures import clear_failure, failed_ordinals, record_failure
from memory_builder.catalog.manifest import FOLD_EVERY, Manifest
from memory_builder.catalog.plan import extend_plan, read_plan, spelled_as_planned
from memory_builder.catalog.published_memory import committed_names
from memory_builder.catalog.trusted import refuse_unnamed, remember_model, remember_sources
from memory_builder.embedding.config import DescribeTask, EmbedConfig, describe_vectors
from memory_builder.embedding.embed_shard import EmbedTask
from memory_builder.embedding.import_shard import what_is_lacking
from memory_builder.embedding.known_pairs import delete_replaced, with_earlier
from memory_builder.embedding.retry_rejects import rejected_sources, standing_reasons
from memory_builder.embedding.settings import check_settings, settings_for_import
from memory_builder.errors import ConcurrentWriterError, EncoderError, StorageFullError
from memory_builder.model.encoder import EncoderConfig
from memory_builder.readers.discover import find_sources
from memory_builder.readers.published import find_published, published_width
from memory_builder.readers.shard import Shard, Source
from memory_builder.storage.filesystem import RETRIES
from memory_builder.storage.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedReport:
    """What came of one run of ``embed``."""

    n_shards: int
    """Shards asked for."""
    n_embedded: int
    """Shards embedded by this run; the others were done already."""
    n_rows: int
    """Rows in the memory, whoever wrote them; likewise ``n_rejects`` and ``n_partial``."""
    n_rejects: int
    reasons: dict[str, int]
    """Rejects by reason, the commonest first."""
    n_partial: int
    failed: dict[str, str]
    """Shard uri → error."""
    n_retries: int
    """Storage requests this run had to make again."""
    notes: dict[str, int]
    """What else is worth knowing of the rows this run wrote, with how many it concerns."""
    seconds: float


def embed(
    sources: str | Sequence[str],
    memory: Store | str,
    *,
    encoder: EncoderConfig,
    config: EmbedConfig,
    runner: Runner,
    decode_threads: int | None = None,
    allow_hosts: tuple[str, ...] = (),
    retry_failed: bool = False,
    retry_rejects: bool = False,
) -> EmbedReport:
    """Embed every shard of ``sources`` that ``memory`` does not hold yet.

    With ``retry_failed``, only those of them that failed last time, and without sources all that did. With
    ``retry_rejects``, the pairs that were rejected, of those shards or without sources of all: what comes of them
    becomes new shards. Links lead to public addresses and ``allow_hosts``.

    Raises:
        SourceError: a source matches nothing.
        EncoderError: the model cannot be loaded.
        ConfigMismatchError: the memory was written with another encoder or configuration.
        StorageFullError: there is no room left for the memory.
    """
    started = time.monotonic()
    store = Store(memory)
    found = find_sources(sources)
    check_settings(store, encoder, config)
    described = run_one(runner, DescribeTask(encoder=encoder), config)
    settle_description(store, described)
    remember_model(encoder)
    found = spelled_as_planned(read_plan(store), found)
    remember_sources(found)
    store.sweep()
    if retry_rejects:
        named = {source.uri for source in found} if sources else None
        found = rejected_sources(Manifest.read(store).commits.values(), named)
    plan = extend_plan(store, found)
    manifest = Manifest.read(store)
    shards = _asked(plan, found)
    if retry_failed:
        failures = failed_ordinals(store, manifest.commits)
        shards = [shard for shard in (shards if sources else plan) if shard.ordinal in failures]
    if not sources:
        refuse_unnamed(shards, plan)
    task = EmbedTask(
        memory=store,
        encoder=replace(encoder, precision=described.config["precision"]),
        config=config,
        description=described,
        decode_threads=decode_threads,
        allow_hosts=allow_hosts,
    )
    report = _do("embed", store, manifest, task, shards, runner, started)
    delete_replaced(store, shards, manifest.commits)
    return report


def import_embeddings(
    root: str,
    memory: Store | str,
    *,
    encoder: EncoderConfig | None,
    config: EmbedConfig,
    runner: Runner,
    keys: Modality = "image",
) -> EmbedReport:
    """Copy published embeddings into ``memory``, as far as it does not hold them yet.

    Args:
        root: a folder of ``img_emb``, ``text_emb`` and ``metadata``, any of the first two; of ``.npy`` files; or a
            parquet or lance table with a column of vectors.
        encoder: the model they were made with; without it only vectors can be asked for.
        config: only its ``columns``, ``caption_key`` and ``url_key`` matter.
        keys: the modality of vectors whose files or columns are not called after one.

    Raises:
        SourceError: there are no embeddings, or they do not belong together.
        EncoderError: the model cannot be loaded.
        ConfigMismatchError: the memory was written with another encoder or configuration.
    """
    started = time.monotonic()
    store = Store(memory)
    found = find_published(root, keys, committed=committed_names(root))
    d = published_width(found)
    if lacking := what_is_lacking(found[0].uri, config):
        say(f"import: {lacking}")
    config = settings_for_import(store, config)
    check_settings(store, encoder, config)
    described = run_one(runner, DescribeTask(encoder=encoder), config) if encoder else describe_vectors(d, config)
    if described.d != d:
        raise EncoderError(f"{described.model} makes vectors of width {described.d}, those of {root} have {d}")
    settle_description(store, described)
    if encoder is not None:
        remember_model(encoder)
    store.sweep()
    found = spelled_as_planned(read_plan(store), found)
    shards = _asked(extend_plan(store, found), found)
    manifest = Manifest.read(store)
    task = EmbedTask(memory=store, encoder=None, config=config, description=described, wants_gpu=False)
    report = _do("import", store, manifest, task, shards, runner, started)
    delete_replaced(store, shards, manifest.commits)
    return report


def _asked(plan: Sequence[Shard], found: Sequence[Source]) -> list[Shard]:
    """The planned shards that were asked for; others rest until they are."""
    asked = {(source.uri, source.etag) for source in found}
    return [shard for shard in plan if (shard.uri, shard.etag) in asked]


def _do(
    stage: str,
    store: Store,
    manifest: Manifest,
    task: EmbedTask,
    shards: Sequence[Shard],
    runner: Runner,
    started: float,
) -> EmbedReport:
    """Run the task over the shards that are not committed, and keep the books."""
    pending = with_earlier([shard for shard in shards if not _is_done(shard, manifest)], manifest.commits.values())
    failed = {}
    n_retries = 0
    notes: Counter[str] = Counter()
    progress = Progress(stage, n_planned=len(shards), n_done=len(shards) - len(pending))
    for shard, result in runner.run(task, pending):
        if isinstance(result, StorageFullError):
            raise result  # it is no fault of the shard, and the others would meet with the same
        if isinstance(result, Exception):
            failed[shard.uri] = record_failure(store, shard, result)
            progress.advance(failed=True)
            continue
        clear_failure(store, shard)
        manifest.add(result)
        n_retries += result.retries
        notes.update(result.notes)
        progress.advance(n_pairs=result.n_read)
        if len(manifest.commits) - len(manifest.folded) >= FOLD_EVERY:
            manifest.fold(store)
    manifest.fold(store)
    commits = manifest.commits.values()
    reasons = standing_reasons(commits)
    return EmbedReport(
        n_shards=len(shards),
        n_embedded=len(pending) - len(failed),
        n_rows=manifest.n_rows,
        n_rejects=reasons.total(),
        reasons=dict(reasons.most_common()),
        n_partial=sum(commit.partial is not None for commit in commits),
        failed=failed,
        n_retries=n_retries + RETRIES.take(),
        notes=dict(notes),
        seconds=time.monotonic() - started,
    )


def _is_done(shard: Shard, manifest: Manifest) -> bool:
    commit = manifest.commits.get(shard.ordinal)
    if commit is not None and commit.uri != shard.uri:
        raise ConcurrentWriterError(
            f"shard {shard.ordinal} is {shard.uri} in the plan and {commit.uri} in its commit record: two drivers "
            "wrote this memory without seeing each other; embed into a new folder"
        )
    return commit is not None
