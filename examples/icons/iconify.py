"""Read the npm package `@iconify/json`: the icon sets, their licences and their icons.

Sources of the layout: https://iconify.design/docs/types/iconify-json.html and the package's own `collections.json`.
"""

import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = "@iconify/json"
VERSION = "2.2.535"  # pinned: names, artwork and licences change with every release
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # iconify's own rule for names; hence no dot, slash or double dash


class IconsError(Exception):
    """Something a user can put right; the message names what, where and the fix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IconSet:
    """One artist's or vendor's set, as `collections.json` describes it."""

    prefix: str
    name: str
    author: str
    author_url: str | None
    licence: str
    licence_spdx: str
    licence_url: str | None
    category: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Icon:
    """One picture: an SVG body and its view box, in the set's own units."""

    set: str
    name: str
    body: str
    left: float
    top: float
    width: float
    height: float

    @property
    def mono(self) -> bool:
        """Whether the drawing leaves its colour to whoever shows it."""
        return "currentColor" in self.body


def open_package(source: Path | None, cache: Path) -> Path:
    """Return the folder of the unpacked package, fetched into `cache` unless `source` (tgz or folder) is given."""
    if source is not None and source.is_dir():
        return _checked(source)
    folder = cache / f"iconify-json-{VERSION}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            unpacked = _unpack(source or _fetch(Path(scratch)), Path(scratch))
            _checked(unpacked).rename(folder)
    return _checked(folder)


def read_sets(package: Path) -> dict[str, IconSet]:
    """Return the sets listed in `collections.json` by prefix; files it does not list were withdrawn."""
    listed = json.loads((package / "collections.json").read_bytes())
    return {prefix: _icon_set(prefix, listed[prefix]) for prefix in sorted(listed)}


def read_icons(package: Path, prefix: str) -> dict[str, Icon]:
    """Return the icons of one set by name, in order; without hidden ones (withdrawn) and aliases (no own artwork)."""
    raw = json.loads((package / "json" / f"{prefix}.json").read_bytes())
    # A field missing in the icon is taken from the set, else from iconify's own default.
    default = {"left": 0, "top": 0, "width": 16, "height": 16}
    default |= {field: raw[field] for field in default if field in raw}
    icons: dict[str, Icon] = {}
    for name, own in sorted(raw["icons"].items()):
        if own.get("hidden"):
            continue
        if not NAME.fullmatch(name):
            raise IconsError(
                f"set {prefix} in {package}: icon name {name!r} is not of iconify's form; repair the package"
            )
        box = {field: own.get(field, value) for field, value in default.items()}
        icons[name] = Icon(set=prefix, name=name, body=own["body"], **box)
    return icons


def read_tags(package: Path, prefix: str) -> dict[str, tuple[str, ...]]:
    """Return, by icon name, the headings its set files it under; many sets have none."""
    raw = json.loads((package / "json" / f"{prefix}.json").read_bytes())
    tags: dict[str, tuple[str, ...]] = {}
    for heading, names in sorted(raw.get("categories", {}).items()):
        for name in names:
            tags[name] = (*tags.get(name, ()), heading)
    return tags


def icon_names(package: Path, prefix: str) -> list[str]:
    """Return the names `read_icons` would."""
    return list(read_icons(package, prefix))


def _icon_set(prefix: str, info: dict[str, Any]) -> IconSet:
    licence, author = info["license"], info["author"]
    return IconSet(
        prefix=prefix,
        name=info["name"],
        author=author["name"],
        author_url=author.get("url"),
        licence=licence["title"],
        licence_spdx=licence["spdx"],
        licence_url=licence.get("url"),
        category=info.get("category"),
    )


def _fetch(folder: Path) -> Path:
    """Download the pinned package into `folder`, from whatever registry npm is configured with."""
    npm = shutil.which("npm")
    if npm is None:
        raise IconsError("npm is not on the PATH: install it, or give --source the package's tgz or its folder")
    # A scratch folder as cwd keeps npm from reading some other project's files.
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise IconsError(f"`{' '.join(command)}` failed; see `npm config get registry`:\n{done.stderr.strip()}")
    return folder / done.stdout.split()[-1]


def _unpack(tgz: Path, folder: Path) -> Path:
    """Unpack what is read of the package (npm puts everything under `package/`)."""
    try:
        with tarfile.open(tgz) as archive:
            wanted = re.compile(r"package/(package|collections|json/[^/]+)\.json")
            archive.extractall(folder, [m for m in archive if wanted.fullmatch(m.name)], filter="data")
    except (OSError, tarfile.TarError) as error:
        raise IconsError(f"cannot unpack {tgz}: {error}; give --source the tgz or the folder of {PACKAGE}") from error
    return folder / "package"


def _checked(folder: Path) -> Path:
    """Return `folder` if it holds the pinned version."""
    try:
        found = json.loads((folder / "package.json").read_bytes())
    except (OSError, ValueError) as error:
        raise IconsError(
            f"{folder} holds no readable package.json: {error}; give another --source or --cache"
        ) from error
    if (found.get("name"), found.get("version")) != (PACKAGE, VERSION):
        raise IconsError(
            f"{folder} holds {found.get('name')}@{found.get('version')}, not {PACKAGE}@{VERSION}: "
            f"give --source the pinned version, or leave it out to fetch that"
        )
    return folder
