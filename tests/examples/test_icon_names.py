"""What icon names say: marks of the set off, one spelling, and who calls what a brand."""

from pathlib import Path

import entities
import iconify
import pytest
from names import entity_of, read_name


@pytest.mark.parametrize(
    ("icon_set", "category", "name", "words", "role", "logo"),
    [
        ("vscode-icons", "Programming", "file-type-rust", "rust", "plain", True),
        ("vscode-icons", "Programming", "folder-type-docs-opened", "docs", "folder", True),
        ("devicon", "Programming", "angular-original-wordmark", "angular", "wordmark", True),
        ("skill-icons", "Programming", "graphql-dark", "graphql", "plain", True),
        ("tabler", "UI 24px", "brand-github-filled", "github", "plain", True),
        ("ion", "UI 16px / 32px", "logo-no-smoking", "no smoking", "plain", True),
        ("ph", "UI Other / Mixed Grid", "amazon-logo-duotone", "amazon", "plain", True),
        ("streamline-logos", "Logos", "amazon-prime-video-logo-2-solid", "amazon prime video", "plain", True),
        ("entypo-social", "Logos", "github-with-circle", "github", "plain", True),
        ("fa7-brands", "Logos", "square-github", "github", "plain", True),
        ("logos", "Logos", "windows-11", "windows 11", "plain", True),
        ("fluent", "UI", "zoom-out-24-filled", "zoom out", "plain", False),
        ("keyline-icons", "UI", "bell-x-sharp-two-tone", "bell x", "plain", False),
        ("ic", "Material", "baseline-home", "home", "plain", False),
        ("reicon", "UI", "search2-filled", "search", "plain", False),
        ("noto", "Emoji", "woman-cook-medium-light-skin-tone", "woman cook", "plain", False),
        ("fluent-emoji", "Emoji", "woman-rowing-boat-medium-dark", "woman rowing boat", "plain", False),
        ("mdi", "Material", "outline", "outline", "plain", False),
        ("codicon", "Programming", "arrow-up", "arrow up", "plain", False),
    ],
)
def test_marks_of_the_set_come_off(icon_set: str, category: str, name: str, words: str, role: str, logo: bool) -> None:
    named = read_name(icon_set, category, (), name)
    assert (" ".join(named.words), named.role, named.logo) == (words, role, logo)


@pytest.mark.parametrize(
    ("icon_set", "name", "country"),
    [
        ("flag", "fr-1x1", "france"),
        ("circle-flags", "us-ca", "california"),
        ("cif", "bo", "bolivia"),
        ("emojione", "flag-for-bolivia", "bolivia"),
        ("twemoji", "flag-trinidad-and-tobago", "trinidad and tobago"),
        ("twemoji", "flag-in-hole", None),
        ("mdi", "flag-outline", None),
    ],
)
def test_flags_are_countries(icon_set: str, name: str, country: str | None) -> None:
    named = read_name(icon_set, "Flags / Maps", (), name)
    assert named.country == country
    if country:
        assert " ".join(named.words) == f"flag of {country}"


def test_tags_make_a_logo() -> None:
    assert read_name("uil", "UI 24px", ("Brand Logos",), "slack-alt").logo
    assert not read_name("uil", "UI 24px", ("Business",), "slack-alt").logo


@pytest.mark.parametrize(
    ("words", "logo", "entity"),
    [
        ("visual studio code", True, "visualstudiocode"),
        ("vscode", True, "visualstudiocode"),
        ("nodedotjs", True, "nodejs"),
        ("vue", True, "vuejs"),
        ("edge", True, "microsoftedge"),
        ("edge", False, "edge"),
    ],
)
def test_one_spelling(words: str, logo: bool, entity: str) -> None:
    assert entity_of(words.split(), logo=logo) == entity


def rows(*icons: tuple[str, str, str, str]) -> list[entities.Row]:
    """Return rows of (set, artist, category, name)."""
    found = []
    for prefix, artist, category, name in icons:
        named = read_name(prefix, category, (), name)
        found.append(entities.Row(prefix, artist, name, (), named, entities.namespaced(named)))
    return found


def test_kinds_follow_the_artists() -> None:
    table = entities.table_of(
        rows(
            ("simple-icons", "a", "Logos", "dropzone"),
            ("cib", "b", "Logos", "dropzone"),
            ("jam", "c", "UI", "dropzone-square"),
            ("logos", "d", "Logos", "target"),
            ("mdi", "e", "UI", "target"),
            ("tabler", "f", "UI", "target"),
            ("bi", "g", "UI", "target"),
            ("mdi", "e", "UI", "home-outline"),
            ("token", "h", "Logos", "near"),
        )
    )
    found = {row["key"]: (row["entity"], row["kind"]) for row in table.to_pylist()}
    # A frame is taken off where that makes the name of a brand, and nowhere else.
    assert found["jam--dropzone-square"] == ("dropzone", "brand")
    assert found["mdi--target"] == found["logos--target"] == ("target", "homonym")
    assert found["mdi--home-outline"] == ("home", "generic")
    assert found["token--near"] == ("ticker:near", "ticker")


def test_display_is_the_spelling_of_most_artists() -> None:
    table = entities.table_of(
        rows(
            ("simple-icons", "a", "Logos", "primevideo"),
            ("thesvg", "b", "Logos", "primevideo"),
            ("logos", "c", "Logos", "prime-video"),
        )
    )
    assert set(table["display"].to_pylist()) == {"prime video"}


def test_real_names_of_the_package_are_all_read(tmp_path: Path) -> None:
    with pytest.raises(iconify.IconsError):
        entities.write_entities(entities.Entities(out=tmp_path / "e.parquet", source=tmp_path))
