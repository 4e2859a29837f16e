"""Entry point: search, choose, write tars, summarise. After a kill, the same call resumes."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from memory_builder.base.arguments import several
from memory_builder.base.runner import Item, LocalRunner, Result, Runner
from memory_builder.base.stage import Stage
from memory_builder.catalog.trusted_sources import encoder_of, link_policy
from memory_builder.errors import ConfigMismatchError, MemoryBuilderError, RetrieveError
from memory_builder.memory import Memory
from memory_builder.model.encoder import EncoderConfig
from memory_builder.model.templates import read_templates
from memory_builder.retrieval.choose import choose, write_all_hits
from memory_builder.retrieval.chosen import Chosen, read_chosen
from memory_builder.retrieval.classes import Class, read_classes
from memory_builder.retrieval.config import MAX_MISSING, RetrieveConfig, modality_of
from memory_builder.retrieval.copies.exclude import Excluded, ExcludeTask, done_excluded, find_excluded
from memory_builder.retrieval.page import write_page
from memory_builder.retrieval.pieces import done_pieces
from memory_builder.retrieval.queries import Block, blocks_of
from memory_builder.retrieval.search import SearchTask, done_blocks, whole_blocks
from memory_builder.retrieval.summary import Summary, summarise
from memory_builder.retrieval.support_set import write_support
from memory_builder.retrieval.write import WriteTask
from memory_builder.storage.records import content_hash, record_bytes, write_record
from memory_builder.storage.store import Store

DESCRIPTION, SUMMARY = "retrieve.json", "subset.json"
LOCATIONS = ("memory", "model", "pretrained")
"""Fields of locations, left out of the hash: snapshot and fingerprint identify their contents."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Arguments of one subset."""

    memory: str
    out: str
    classes: tuple[Class, ...]
    templates: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    """Evaluation sets to exclude; see ``exclude.find_excluded``."""
    config: RetrieveConfig
    encoder: EncoderConfig | None = None
    """The memory's model at its current path, if it has moved."""
    max_missing: float = MAX_MISSING
    """Share of the chosen pairs whose pictures may be missing; more fails the run."""
    local_roots: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    """Hosts that links may lead to; see ``LinkPolicy``, also for the roots."""


def retrieve(
    memory: Memory | str,
    *,
    classes: Sequence[str | Class] | Path,
    out: str,
    templates: str | Sequence[str] = "{c}",
    exclude: str | Sequence[str] = (),
    config: RetrieveConfig | None = None,
    encoder: EncoderConfig | None = None,
    runner: Runner | None = None,
    max_missing: float = MAX_MISSING,
    local_roots: Sequence[str] = (),
    allow_hosts: Sequence[str] = (),
) -> Summary:
    """Retrieve the pairs most relevant to ``classes`` and write them as a training subset (REACT, stage 1).

    Args:
        memory: an open memory, or its folder.
        classes: class names, or a file as for ``--classes``.
        out: folder of the subset, a local path or an fsspec URL.
        templates: prompt templates: a built-in set (imagenet, …), a file, one template, or several.
        exclude: evaluation sets whose pictures and near duplicates are left out.
        config: settings of retrieval and selection.
        encoder: the memory's model at its current path, if it has moved.
        runner: runs the work (default: in this process).
        max_missing: share of the chosen pairs whose pictures may be missing.
        local_roots, allow_hosts: targets of links that a memory built elsewhere may use; see ``LinkPolicy``.

    Raises:
        UsageError: an argument is invalid.
        IndexBuildError: the memory lacks an index of a searched modality.
        ConfigMismatchError: ``out`` holds a subset of other settings or another snapshot.
        RetrieveError: work failed, which the same call retries, or more than ``max_missing`` pictures are missing.
    """
    if isinstance(classes, Path):
        listed = read_classes(classes)
    else:
        listed = [c if isinstance(c, Class) else Class(label=label, name=c) for label, c in enumerate(classes)]
    request = Request(
        memory=memory if isinstance(memory, str) else memory.store.root,
        out=out,
        classes=tuple(listed),
        templates=read_templates(templates) if isinstance(templates, str) else tuple(templates),
        exclude=several(exclude),
        config=config or RetrieveConfig(),
        encoder=encoder,
        max_missing=max_missing,
        local_roots=tuple(local_roots),
        allow_hosts=tuple(allow_hosts),
    )
    return write_subset(request, runner or LocalRunner())


def write_subset(request: Request, runner: Runner) -> Summary:
    """Write a subset, or resume one.

    Raises:
        UsageError: an argument is invalid.
        IndexBuildError: the memory lacks an index of a searched modality.
        ConfigMismatchError: ``request.out`` holds a subset of other settings or another snapshot.
        RetrieveError: work failed, which the same call retries, or more than ``max_missing`` pictures are missing.
    """
    store, memory = Store(request.out), Memory.open(request.memory, encoder=request.encoder)
    request = replace(request, encoder=request.encoder or encoder_of(memory.description, memory.store.root))
    for mode in request.config.ask.modes:
        memory.snapshot.view(modality_of(mode), memory.store.root)
    blocks = blocks_of(request.classes, request.templates, request.config.ask)
    excluded = find_excluded(request.exclude)
    _create_or_compare(store, _description(request, memory, excluded))
    store.sweep()
    root = memory.store.root
    state = memory.snapshot
    search = SearchTask(memory=root, out=store.root, encoder=request.encoder, ask=request.config.ask, snapshot=state)
    chosen = read_chosen(store)
    searched = whole_blocks(store) if chosen is None else done_blocks(store)
    pending = [block for block in blocks if block.number not in searched]
    _finish_stage(Stage(name="search", task=search, runner=runner, unit="blocks"), pending, len(blocks))
    if excluded:
        _read_excluded(request, memory, store, excluded, runner)
    chosen = chosen or _choose(store, blocks, memory, request.config)
    names = tuple(c.name for c in request.classes)
    write = WriteTask(
        memory=root,
        out=store.root,
        limits=request.config.leaks,
        class_names=names,
        snapshot=state,
        policy=link_policy(memory.commits.values(), local_roots=request.local_roots, allow_hosts=request.allow_hosts),
    )
    done = done_pieces(store)
    pieces = [number for number in range(len(chosen.pieces)) if number not in done]
    _finish_stage(Stage(name="write", task=write, runner=runner, unit="tars"), pieces, len(chosen.pieces))
    return _finish(request, store, memory, chosen)


def _choose(store: Store, blocks: Sequence[Block], memory: Memory, config: RetrieveConfig) -> Chosen:
    write_all_hits(store, blocks)
    return choose(store, blocks, memory, config)


def _read_excluded(
    request: Request, memory: Memory, store: Store, excluded: Sequence[Excluded], runner: Runner
) -> None:
    described = memory.description
    encoder = request.encoder
    assert encoder is not None
    precision = described.config.get("precision", encoder.precision)
    task = ExcludeTask(out=store.root, encoder=replace(encoder, precision=precision), fingerprint=described.fingerprint)
    done = done_excluded(store)
    pending = [item for item in excluded if item.number not in done]
    _finish_stage(Stage(name="exclude", task=task, runner=runner, unit="blocks"), pending, len(excluded))


def _finish_stage(stage: Stage[Item, Result], pending: Sequence[Item], n_planned: int) -> None:
    """Run a stage to its end, and raise its failures together."""
    failed: list[str] = []
    for _, result in stage.outcomes(pending, n_done=n_planned - len(pending)):
        if isinstance(result, Exception):
            known = isinstance(result, MemoryBuilderError)
            failed.append(str(result) if known else f"{type(result).__name__}: {result}")
    if failed:
        reasons = "; ".join(dict.fromkeys(failed[:3]))
        raise RetrieveError(
            f"{len(failed)} of {n_planned} {stage.unit} of {stage.name} failed ({reasons}): run the same command again"
        )


def _finish(request: Request, store: Store, memory: Memory, chosen: Chosen) -> Summary:
    summary, claims = summarise(request.classes, request.config, store, memory, chosen)
    n_asked = summary.pairs + summary.missing + summary.decontaminated
    if summary.missing > request.max_missing * n_asked:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in summary.missing_by_reason.items())
        raise RetrieveError(
            f"{summary.missing:,} of {n_asked:,} chosen pictures are missing ({reasons}): restore the sources "
            f"and write to a new folder, or allow it with --max-missing {summary.missing / n_asked:.2f}1"
        )
    write_support(store, memory, claims, len(request.classes), request.config.support)
    write_record(store, SUMMARY, summary, ensure_ascii=False)
    write_page(store, summary, claims)
    return summary


def _description(request: Request, memory: Memory, excluded: Sequence[Excluded]) -> dict[str, Any]:
    """Inputs and settings that determine the subset, besides the code."""
    snapshot = asdict(memory.snapshot)
    del snapshot["written_s"]
    return {
        "memory": memory.store.root,
        "model": memory.description.model,
        "pretrained": memory.description.pretrained,
        "fingerprint": memory.description.fingerprint,
        "snapshot": snapshot,
        "classes": [asdict(c) for c in request.classes],
        "templates": list(request.templates),
        "exclude": [asdict(item) for item in excluded],
        "config": asdict(request.config),
    }


def _create_or_compare(store: Store, description: dict[str, Any]) -> None:
    """Write the description of a new subset; for an existing one, check that it is the same."""
    description = json.loads(json.dumps(description))
    decisive = {name: value for name, value in description.items() if name not in LOCATIONS}
    record = description | {"config_hash": content_hash(decisive), "started_s": time.time()}
    try:
        store.create(DESCRIPTION, record_bytes(record, ensure_ascii=False))
    except FileExistsError:
        fix = "remove it and run the same command again with its first settings, or use another --out"
        existing = store.read_json(DESCRIPTION, fix=fix) or {}
        if existing.get("config_hash") != record["config_hash"]:
            differing = [name for name in decisive if existing.get(name) != decisive[name]]
            changes = ", ".join(
                f"{name} ({_brief(existing.get(name))} before, {_brief(decisive[name])} now)" for name in differing
            )
            raise ConfigMismatchError(
                f"{store.root} holds a subset of other settings: {changes}. Use the same settings and snapshot, or "
                "another --out"
            ) from None


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:40]}… of {len(text):,} characters"
