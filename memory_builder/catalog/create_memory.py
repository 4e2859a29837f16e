"""Write ``memory.json`` of a new memory, or check that the settings of an existing one agree."""

from memory_builder.catalog.description import DESCRIPTION, Description, read_description, read_description_strictly
from memory_builder.catalog.manifest import Manifest
from memory_builder.errors import ConfigMismatchError, CorruptMemoryError, UsageError
from memory_builder.storage.store import Store


def create_memory(store: Store, description: Description) -> None:
    """Write ``memory.json`` of a new memory or where it was lost; check the settings of an existing one.

    Raises:
        ConfigMismatchError: the memory was written with other settings.
    """
    try:
        existing: Description | None = read_description(store)
    except (UsageError, CorruptMemoryError):  # a new memory, or one whose description is lost
        existing = None
    hashes = (
        {existing.config_hash} if existing else {commit.config_hash for commit in Manifest.read(store).commits.values()}
    )
    if hashes - {description.config_hash}:
        _refuse_other_settings(store, existing, hashes.pop(), description)
    if existing is None:
        try:
            store.create(DESCRIPTION, description.to_json())
        except FileExistsError:
            _compare_with_existing(store, description)


def _compare_with_existing(store: Store, description: Description) -> None:
    """Compare with the ``memory.json`` that another writer created meanwhile; replace a damaged one."""
    data = store.read(DESCRIPTION)
    try:
        existing = read_description_strictly(store, data)
    except CorruptMemoryError:
        store.put(DESCRIPTION, description.to_json())
        return
    if existing.config_hash != description.config_hash:
        _refuse_other_settings(store, existing, existing.config_hash, description)


def _refuse_other_settings(
    store: Store, existing: Description | None, existing_hash: str, description: Description
) -> None:
    config = existing.config if existing else {}
    differing = {
        name: (config.get(name), description.config.get(name))
        for name in sorted(config.keys() | description.config.keys())
        if existing and config.get(name) != description.config.get(name)
    }
    changes = ", ".join(f"{name}: {old!r} before, {new!r} now" for name, (old, new) in differing.items())
    raise ConfigMismatchError(
        f"{store.root} was written with config {existing_hash}, this run has {description.config_hash} "
        f"({changes or 'memory.json is lost, so the differences are unknown'}). Use the same settings, or another "
        "--memory folder."
    ) from None
