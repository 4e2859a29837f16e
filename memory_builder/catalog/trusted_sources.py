"""Trusted sources and models: those that this user named on this machine.

A memory's records name the sources of its rows and its model, and a stranger may have written them. They are opened
only if the caller allows it, or if they are recorded here as trusted: in the user's own state folder, outside of every
memory, where no download can write.
"""

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from memory_builder.base.log import logger
from memory_builder.catalog.commits import Commit
from memory_builder.catalog.description import Description
from memory_builder.errors import EncoderError, UsageError
from memory_builder.model.encoder import EncoderConfig
from memory_builder.model.model_files import LOCAL_DIR
from memory_builder.readers.link_policy import LinkPolicy
from memory_builder.readers.shard import Shard, Source
from memory_builder.readers.shard_uri import join_uri, split_uri
from memory_builder.storage.store import sha256

PLAIN_NAME = re.compile(r"[\w.-]+")
"""Name of one of open_clip's architectures or pretrained tags: neither a path nor a URL."""


def link_policy(
    commits: Iterable[Commit | Shard], *, local_roots: Iterable[str] = (), allow_hosts: Iterable[str] = ()
) -> LinkPolicy:
    """Return the policy for reading the pictures of a memory's rows.

    Args:
        commits: commits of the memory, or the shards of its plan.
        local_roots, allow_hosts: see ``LinkPolicy``.
    """
    remembered = set(_read(_sources_file()))
    own = frozenset(
        split_uri(commit.uri)[0] for commit in commits if _source_digest(commit.uri, commit.etag) in remembered
    )
    return LinkPolicy(sources=own, roots=tuple(local_roots), hosts=tuple(allow_hosts))


def remember_sources(sources: Iterable[Source]) -> None:
    """Record the current versions of these shards as trusted.

    The record is a digest of name and version: a stranger who guesses a path does not know when that file was
    written, and a memory that is moved or copied stays trusted.
    """
    _append(_sources_file(), {_source_digest(source.uri, source.etag) for source in sources})


def refuse_unnamed(shards: Iterable[Shard], planned: Iterable[Shard]) -> None:
    """Refuse to read shards that only the memory names, and not this user.

    Args:
        shards: the shards to read.
        planned: all shards of the memory.

    Raises:
        UsageError: a shard is not trusted.
    """
    own = link_policy(planned).sources
    for shard in shards:
        path, _ = split_uri(shard.uri)
        if path not in own:
            raise UsageError(
                f"{shard.uri} was not embedded from this machine before: name it, as in embed {path} --memory MEMORY, "
                "if it may be read"
            )


def _source_digest(uri: str, etag: str) -> str:
    path, piece = split_uri(uri)
    return sha256(json.dumps([join_uri(path, replace(piece, rejects=None)), etag]).encode())


def remember_model(config: EncoderConfig) -> None:
    """Record as trusted a model that this user named and that is not one of open_clip's own."""
    if not _is_known(config):
        _append(_models_file(), {_name(config)})


def trusted_encoder(config: EncoderConfig, whose: str) -> EncoderConfig:
    """Return a model that a record names, if it is trusted.

    Args:
        whose: the memory, subset or run that names it.

    Raises:
        EncoderError: the model is a folder, weights file or repository that this user never named on this machine.
    """
    if not config.model or _is_known(config) or _name(config) in set(_read(_models_file())):
        return config
    weights = f" with pretrained {config.pretrained}" if config.pretrained else ""
    raise EncoderError(
        f"{whose} names the model {config.model}{weights}, which was never named on this machine; an untrusted model "
        "may be harmful. If you trust it, name it yourself: --model (and --pretrained), or encoder= in Python"
    )


def encoder_of(description: Description, root: str) -> EncoderConfig:
    """Return the model that a memory's description names, if it is trusted.

    Raises:
        EncoderError: see ``trusted_encoder``.
    """
    return trusted_encoder(EncoderConfig(model=description.model, pretrained=description.pretrained), root)


def _is_known(config: EncoderConfig) -> bool:
    """Whether a model comes with open_clip or this package."""
    folder = config.model.removeprefix(LOCAL_DIR)
    if folder != config.model:
        return os.path.realpath(folder) == os.path.realpath(str(files("memory_builder.demo") / "model"))
    return PLAIN_NAME.fullmatch(config.model) is not None and (
        config.pretrained is None or PLAIN_NAME.fullmatch(config.pretrained) is not None
    )


def _name(config: EncoderConfig) -> str:
    folder = config.model.removeprefix(LOCAL_DIR)
    model = config.model if folder == config.model else LOCAL_DIR + os.path.realpath(folder)
    return json.dumps([model, config.pretrained])


def _state() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "memory-builder"


def _models_file() -> Path:
    return _state() / "models.jsonl"


def _sources_file() -> Path:
    return _state() / "sources.jsonl"


def _read(path: Path) -> Iterator[str]:
    """Read a file of JSON strings, one a line; nothing if other users may write the file."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if hasattr(os, "getuid") and (status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o022):
                return
            for line in file:
                try:
                    value = json.loads(line)
                except ValueError:  # a write that was killed
                    continue
                if isinstance(value, str):
                    yield value
    except OSError:
        return


def _append(path: Path, values: Iterable[str]) -> None:
    """Append the values that are missing, in one write, so that concurrent writers do not mix lines."""
    new = sorted(set(values) - set(_read(path)))
    if not new:
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, "".join(f"\n{json.dumps(value)}\n" for value in new).encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        logger.info(
            f"{path} cannot be written ({error.strerror}): later commands need --local-root or --model to trust these"
        )
