"""Write ``memory.json`` for a new memory; for an existing one, check that its settings agree."""

from memory_builder.catalog.description import DESCRIPTION, Description, read_description, read_description_strictly
from memory_builder.catalog.manifest import Manifest
from memory_builder.errors import ConfigMismatchError, CorruptMemoryError, UsageError
from memory_builder.storage.store import Store


def settle_description(store: Store, description: Description) -> None:
    """Write ``memory.json`` for a new memory, or anew where it was lost; for an existing one check that it agrees.

    Raises:
        ConfigMismatchError: the memory was written with other settings.
    """
    try:
        there: Description | None = read_description(store)
    except (UsageError, CorruptMemoryError):  # a new memory; or what is there is lost
        there = None
    hashes = {there.config_hash} if there else {commit.config_hash for commit in Manifest.read(store).commits.values()}
    if hashes - {description.config_hash}:
        _refuse_other_settings(store, there, hashes.pop(), description)
    if there is None:
        try:
            store.create(DESCRIPTION, description.to_json())
        except FileExistsError:
            _settle_with_the_first(store, description)


def _settle_with_the_first(store: Store, description: Description) -> None:
    """Another writer created ``memory.json`` meanwhile, or it is damaged."""
    data = store.read(DESCRIPTION)
    try:
        there = read_description_strictly(store, data)
    except CorruptMemoryError:
        store.put(DESCRIPTION, description.to_json())
        return
    if there.config_hash != description.config_hash:
        _refuse_other_settings(store, there, there.config_hash, description)


def _refuse_other_settings(store: Store, there: Description | None, hash_there: str, description: Description) -> None:
    config = there.config if there else {}
    differing = {
        name: (config.get(name), description.config.get(name))
        for name in sorted(config.keys() | description.config.keys())
        if there and config.get(name) != description.config.get(name)
    }
    changes = ", ".join(f"{name}: {old!r} there, {new!r} asked" for name, (old, new) in differing.items())
    raise ConfigMismatchError(
        f"{store.root} was written with config {hash_there}, this run has {description.config_hash} "
        f"({changes or 'memory.json is lost, so what differs is not known'}). Use the same settings, or another "
        "--memory folder."
    ) from None
