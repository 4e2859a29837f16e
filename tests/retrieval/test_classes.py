"""Class lists and prompts as people have them, and what is wrong with others."""

import json
from pathlib import Path
from typing import Any

import pytest

from memory_builder.errors import UsageError
from memory_builder.model.templates import built_in_templates, fill, read_templates
from memory_builder.retrieval.classes import Class, read_captions, read_classes


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_name_a_line_with_repeated_names_and_slashes_kept_apart(tmp_path: Path) -> None:
    classes = read_classes(written(tmp_path / "classnames.txt", "missile\nAC/DC  adapter\nmissile\ncafé\n"))
    assert [(c.label, c.name) for c in classes] == [(0, "missile"), (1, "AC/DC adapter"), (2, "missile"), (3, "café")]


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    for name, content in (("c.txt", "panda\ncat\n"), ("c.json", '["panda", "cat"]')):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert [c.name for c in read_classes(tmp_path / name)] == ["panda", "cat"]
    (tmp_path / "t.txt").write_text("a {c}\n", encoding="utf-8-sig")
    assert [c.name for c in read_captions(tmp_path / "t.txt")] == ["a {c}"]
    assert read_templates(str(tmp_path / "t.txt")) == ("a {c}",)
    (tmp_path / "t.txt").write_bytes("ein schönes {c}".encode("latin-1"))
    with pytest.raises(UsageError, match=r"--templates .*t\.txt cannot be read"):
        read_templates(str(tmp_path / "t.txt"))


def test_captions_are_a_line_each_whatever_else_ends_lines(tmp_path: Path) -> None:
    captions = read_captions(written(tmp_path / "c.txt", "a\u2028cat\r\n\n a dog\x85too \n"))
    assert [c.name for c in captions] == ["a\u2028cat", "a dog\x85too"]


def test_json_lists_hold_names_synonyms_and_pictures(tmp_path: Path) -> None:
    given = ["cat", ["angry", "mad", "angry"], {"name": "sun", "synonyms": ["star"], "images": ["a.png"]}]
    assert read_classes(written(tmp_path / "c.json", given)) == [
        Class(label=0, name="cat"),
        Class(label=1, name="angry", synonyms=("mad",)),
        Class(label=2, name="sun", synonyms=("star",), images=(str(tmp_path / "a.png"),)),
    ]
    by_name = read_classes(written(tmp_path / "d.json", {"cat": ["kitty"], "dog": None, "cow": "ox"}))
    assert [c.names for c in by_name] == [("cat", "kitty"), ("dog",), ("cow", "ox")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.txt", ""),
        ("c.txt", "cat\n\ndog\n"),
        ("c.json", "[1, 2"),
        ("c.json", "[]"),
        ("c.json", "3"),
        ("c.json", '["cat", 3]'),
        ("c.json", '["cat", []]'),
        ("c.json", '[{"synonyms": ["a"]}]'),
        ("c.json", '[{"name": "a", "colour": "red"}]'),
        ("c.json", '[{"name": "a", "images": "a.png"}]'),
    ],
)
def test_what_is_no_list_of_classes_is_refused_with_the_place(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(UsageError, match=f"--classes .*{name}"):
        read_classes(written(tmp_path / name, content))


def test_the_published_prompts_are_built_in() -> None:
    counts = {name: len(prompts) for name, prompts in built_in_templates().items()}
    published = {"imagenet": 80, "caltech101": 34, "cifar10": 18, "resisc45": 18, "cars": 8, "dtd": 8, "fer2013": 6}
    published |= {"country211": 5, "gtsrb": 3, "eurosat": 3, "fgvc-aircraft": 2, "sun397": 2, "stl10": 2, "ucf101": 48}
    assert counts.items() >= published.items()
    assert all("{c}" in prompt for prompts in built_in_templates().values() for prompt in prompts)
    assert all(len(set(prompts)) == len(prompts) for prompts in built_in_templates().values())


def test_prompts_come_from_files_too(tmp_path: Path) -> None:
    assert read_templates(str(written(tmp_path / "t.txt", "a {}.\n\nthe {c}!\n"))) == ("a {}.", "the {c}!")
    assert read_templates(str(written(tmp_path / "t.json", ["a {c}"]))) == ("a {c}",)
    assert fill("a {} {x}", "{c}urly") == "a {c}urly {x}"
    assert fill("a {c}.", "cat") == "a cat."
    with pytest.raises(UsageError, match=r"'a photo' has no {c} for the class name"):
        fill("a photo", "cat")


@pytest.mark.parametrize(
    ("name", "content"),
    [("t.txt", "a cat"), ("t.txt", ""), ("t.json", "{}"), ("t.json", "["), ("t.json", "[3]")],
)
def test_prompts_without_a_place_for_the_name_are_refused(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(UsageError, match=f"--templates .*{name}"):
        read_templates(str(written(tmp_path / name, content)))
    with pytest.raises(UsageError, match="no such file, and no built-in set; there are birdsnap"):
        read_templates("nonsense")
