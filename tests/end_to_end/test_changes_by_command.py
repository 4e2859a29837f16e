"""search --where, append, delete and compact as a user types them."""

import json
import shutil

import pytest
from PIL import Image


def state(command, memory):
    info = json.loads(command("info", memory, "--json").out)
    return info["snapshot"], info["rows"], info["deleted"], info["indexes"]["text"]["segments"]


def found(command, memory, *arguments):
    ran = command("search", memory, "--text", "cat", "--keys", "text", "-k", "1000", "--json", *arguments)
    assert ran.code == 0, ran.err
    return {hit["id"]: hit["key"] for hit in json.loads(ran.out)["hits"]}


def test_a_memory_grows_shrinks_and_is_compacted(command, memory_copy, small_shards, tmp_path, model):
    assert state(command, memory_copy) == (1, 500, 0, [500])
    shutil.copy(small_shards / "00000.tar", tmp_path / "more.tar")
    assert command("embed", tmp_path / "more.tar", "--memory", memory_copy, "--model", model).code == 0
    ran = command("append", memory_copy)
    assert "text index: 500 + 50 rows, 0 of them deleted" in ran.out
    every = found(command, memory_copy)
    assert len(every) == 550
    first, second, third = list(every)[:3]
    (tmp_path / "keys.txt").write_text(f"{every[third]}\n\n")
    assert "2 of them deleted" in command("delete", memory_copy, "--ids", first, second).out
    assert command("delete", memory_copy, "--keys", tmp_path / "keys.txt").code == 0
    assert command("delete", memory_copy, "--where", "caption LIKE 'c%'").code == 0
    left = found(command, memory_copy)
    assert not {first, second, third} & set(left)
    snapshot, rows, deleted, segments = state(command, memory_copy)
    assert (snapshot, rows, segments) == (5, 550, [500, 50])
    assert len(left) == 550 - deleted
    assert f"text index: {550 - deleted} rows, 0 of them deleted" in command("compact", memory_copy, "--purge").out
    assert found(command, memory_copy) == left
    assert command("verify", memory_copy).code == 0
    ran = command("info", memory_copy)
    assert f"deleted: {deleted} rows" in ran.out


def test_keys_come_from_a_file_a_line_each(command, model, tmp_path):
    (tmp_path / "pictures").mkdir()
    for i, key in enumerate(("one\u2028two", "three")):
        Image.new("RGB", (30, 30), (i, i, i)).save(tmp_path / "pictures" / f"{key}.png")
        (tmp_path / "pictures" / f"{key}.txt").write_text(key)
    memory, keys = tmp_path / "memory", tmp_path / "keys.txt"
    assert command("embed", tmp_path / "pictures", "--memory", memory, "--model", model).code == 0
    keys.write_text("one\u2028two\n", encoding="utf-8")
    assert command("delete", memory, "--keys", keys).code == 0
    assert json.loads(command("info", memory, "--json").out)["deleted"] == 1
    keys.write_text("\n")
    ran = command("delete", memory, "--keys", keys)
    assert ran.code == 2
    assert "nothing to delete" in ran.err


def test_a_filter_on_the_command_line(command, built_memory):
    every = found(command, built_memory)
    keys = sorted(every.values())[:7]
    listed = ", ".join(f"'{key}'" for key in keys)
    assert sorted(found(command, built_memory, "--where", f"key IN ({listed}) AND width > 0").values()) == keys
    assert found(command, built_memory, "--where", "width > 100000") == {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("search", "--text", "a", "--where", "colour = 'red'"), "no column colour: the columns are key, caption"),
        (("search", "--text", "a", "--where", "width = 'a'"), "cannot be compared"),
        (("delete",), "exactly one of ids, keys and where"),
        (("delete", "--ids", "123456"), "123456 not in"),
        (("delete", "--keys", "nobody"), "nothing to delete"),
        (("delete", "--keys", "nobody" * 99), "nothing to delete"),
    ],
)
def test_wrong_filters_and_deletions(command, built_memory, arguments, says):
    ran = command(arguments[0], built_memory, *arguments[1:])
    assert ran.code == 2
    assert says in ran.err
    assert "Traceback" not in ran.err
