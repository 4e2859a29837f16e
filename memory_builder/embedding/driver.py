"""Drivers that fill a memory: ``embed`` and ``import_embeddings``.

Each may be killed at any moment and restarted; committed shards are not done again.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memory_builder.base.arguments import one_modality
from memory_builder.base.log import logger
from memory_builder.base.runner import LocalRunner, Runner, run_one
from memory_builder.base.stage import Stage
from memory_builder.base.types import Modality
from memory_builder.catalog.commits import Commit
from memory_builder.catalog.create_memory import create_memory
from memory_builder.catalog.description import DESCRIPTION
from memory_builder.catalog.failures import clear_failure, failed_ordinals, record_failure
from memory_builder.catalog.manifest import FOLD_EVERY, Manifest
from memory_builder.catalog.plan import extend_plan, read_plan, spelled_as_planned
from memory_builder.catalog.published_memory import committed_names
from memory_builder.catalog.trusted_sources import refuse_unnamed, remember_model, remember_sources
from memory_builder.embedding.config import DescribeTask, EmbedConfig, describe_embeddings
from memory_builder.embedding.embed_shard import EmbedTask
from memory_builder.embedding.import_shard import ImportTask, describe_missing
from memory_builder.embedding.known_pairs import delete_replaced, with_earlier
from memory_builder.embedding.retry_rejects import latest_reasons, rejected_sources
from memory_builder.embedding.settings import check_settings, settings_for_embed, settings_for_import
from memory_builder.errors import ConcurrentWriterError
from memory_builder.model.encoder import EncoderConfig, named_encoder
from memory_builder.readers.discover import find_sources
from memory_builder.readers.published import find_published, published_width
from memory_builder.readers.shard import Shard, Source
from memory_builder.readers.shard_uri import split_uri
from memory_builder.storage.filesystem import RETRIES
from memory_builder.storage.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedReport:
    """The result of one run of ``embed`` or ``import_embeddings``."""

    n_shards: int
    """Shards of the sources."""
    n_embedded: int
    """Shards embedded by this run; the others were committed before."""
    n_rows: int
    """Rows in the memory, from all runs; ``n_rejects`` and ``n_partial`` count all runs too."""
    n_rejects: int
    reasons: dict[str, int]
    """Rejects by reason, the most frequent first."""
    n_partial: int
    failed: dict[str, str]
    """Shard URI → error."""
    n_retries: int
    """Retries of storage requests in this run."""
    notes: dict[str, int]
    """Remarks about the rows of this run, with the number of rows each concerns."""
    seconds: float


def embed(
    sources: str | Sequence[str],
    memory: Store | str,
    *,
    model: str | None = None,
    pretrained: str | None = None,
    encoder: EncoderConfig | None = None,
    config: EmbedConfig | None = None,
    runner: Runner | None = None,
    decode_threads: int | None = None,
    allow_hosts: tuple[str, ...] = (),
    retry_failed: bool = False,
    retry_rejects: bool = False,
) -> EmbedReport:
    """Embed every shard of ``sources`` that ``memory`` does not hold yet.

    Args:
        sources: paths, globs, brace ranges or fsspec URLs of tars, parquet files, listings or folders of pictures.
        memory: its folder, a local path or an fsspec URL.
        model, pretrained: an open_clip model and its pretrained tag or weights file; ``encoder`` with its defaults.
        encoder: the model in full. With neither, the model that the memory was built with.
        config: how pairs are read (default: the memory's own).
        runner: where shards are embedded (default: in this process).
        decode_threads: threads that decode pictures in each worker (default: its CPUs).
        allow_hosts: hosts that links may lead to although their addresses are not public.
        retry_failed: only shards that failed last time; without sources, all such shards of the memory.
        retry_rejects: only rejected pairs, of the sources or else of the memory; they become rows of new shards.

    Raises:
        SourceError: a source matches nothing.
        EncoderError: the model cannot be loaded.
        ConfigMismatchError: the memory was written with another encoder or configuration.
        StorageFullError: the storage is full.
    """
    started = time.monotonic()
    store, runner = Store(memory), runner or LocalRunner()
    encoder, config = settings_for_embed(store, encoder or named_encoder(model, pretrained), config)
    found_sources = find_sources(sources)
    check_settings(store, encoder, config)
    described = run_one(runner, DescribeTask(encoder=encoder, config=config), DESCRIPTION)
    create_memory(store, described)
    remember_model(encoder)
    found_sources = spelled_as_planned(read_plan(store), found_sources)
    remember_sources(found_sources)
    store.sweep()
    if retry_rejects:
        uris = {source.uri for source in found_sources} if sources else None
        found_sources = rejected_sources(Manifest.read(store).commits.values(), uris)
    plan = extend_plan(store, found_sources)
    manifest = Manifest.read(store)
    shards = _shards_of(plan, found_sources)
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
    published = [shard for shard in shards if split_uri(shard.uri)[1].is_published]  # imports that failed
    work = [(Stage(name="embed", task=task, runner=runner), [shard for shard in shards if shard not in published])]
    if published:
        copy = ImportTask(memory=store, config=config, description=described)
        work.append((Stage(name="import", task=copy, runner=runner), published))
    return _commit_shards(work, store, manifest, started)


def import_embeddings(
    root: str,
    memory: Store | str,
    *,
    model: str | None = None,
    pretrained: str | None = None,
    encoder: EncoderConfig | None = None,
    config: EmbedConfig | None = None,
    runner: Runner | None = None,
    modality: Modality | None = None,
    keys: Modality | None = None,
) -> EmbedReport:
    """Copy every shard of published embeddings that ``memory`` does not hold yet.

    Args:
        root: a folder of ``img_emb``, ``text_emb`` and ``metadata``, any of the first two; of ``.npy`` files; or a
            parquet or lance table with a column of vectors.
        memory: its folder, a local path or an fsspec URL.
        model, pretrained: the open_clip model they were made with; ``encoder`` with its defaults.
        encoder: that model in full. With neither, the memory can be searched with vectors alone.
        config: only its ``columns``, ``caption_key`` and ``url_key`` matter.
        runner: where shards are copied (default: in this process).
        modality: of vectors whose file or column name contains none (default: image). ``keys`` is its former name.

    Raises:
        SourceError: there are no embeddings, or their files do not match.
        EncoderError: the model cannot be loaded.
        ConfigMismatchError: the memory was written with another encoder or configuration.
    """
    started = time.monotonic()
    store, runner, encoder = Store(memory), runner or LocalRunner(), encoder or named_encoder(model, pretrained)
    config = config or EmbedConfig()
    sources = find_published(root, one_modality(modality, keys), committed=committed_names(root))
    d = published_width(sources)
    if missing := describe_missing(sources[0].uri, config):
        logger.info(f"import: {missing}")
    config = settings_for_import(store, config)
    check_settings(store, encoder, config)
    described = describe_embeddings(encoder, d, config, runner, f"those of {root}")
    create_memory(store, described)
    if encoder is not None:
        remember_model(encoder)
    store.sweep()
    sources = spelled_as_planned(read_plan(store), sources)
    shards = _shards_of(extend_plan(store, sources), sources)
    task = ImportTask(memory=store, config=config, description=described)
    work = [(Stage(name="import", task=task, runner=runner), shards)]
    return _commit_shards(work, store, Manifest.read(store), started)


def _shards_of(plan: Sequence[Shard], sources: Sequence[Source]) -> list[Shard]:
    """Select the planned shards of the current versions of these sources."""
    wanted = {(source.uri, source.etag) for source in sources}
    return [shard for shard in plan if (shard.uri, shard.etag) in wanted]


def _commit_shards(
    work: Sequence[tuple[Stage[Shard, Commit], Sequence[Shard]]], store: Store, manifest: Manifest, started: float
) -> EmbedReport:
    """Commit the shards that have no commit record yet, record the failures of others, delete the rows they replace."""
    failed: dict[str, str] = {}
    notes: Counter[str] = Counter()
    n_retries = n_pending = 0
    for stage, shards in work:
        pending = with_earlier([shard for shard in shards if not _is_done(shard, manifest)], manifest.commits.values())
        n_pending += len(pending)
        outcomes = stage.outcomes(pending, n_done=len(shards) - len(pending), n_pairs=lambda commit: commit.n_read)
        for shard, commit in outcomes:
            if isinstance(commit, Exception):
                failed[shard.uri] = record_failure(store, shard, commit)
                continue
            clear_failure(store, shard)
            manifest.add(commit)
            n_retries += commit.retries
            notes.update(commit.notes)
            if len(manifest.commits) - len(manifest.folded) >= FOLD_EVERY:
                manifest.fold(store)
    manifest.fold(store)
    every_shard = [shard for _, shards in work for shard in shards]
    delete_replaced(store, every_shard, manifest.commits)
    commits = manifest.commits.values()
    reasons = latest_reasons(commits)
    return EmbedReport(
        n_shards=len(every_shard),
        n_embedded=n_pending - len(failed),
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
            "planned this memory independently; embed into a new folder"
        )
    return commit is not None
