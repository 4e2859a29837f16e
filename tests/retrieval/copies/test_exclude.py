"""Evaluation pictures are known whatever else is wrong with their pairs; what is not known is counted."""

from pathlib import Path

import pytest

from memory_builder.errors import UsageError
from memory_builder.model.encoder import Encoder
from memory_builder.retrieval.copies.exclude import Evaluation, Excluded, find_excluded, read_excluded
from memory_builder.retrieval.tar_writer import TarWriter
from memory_builder.storage.store import Store, sha256


def test_pictures_are_known_whatever_is_said_of_them_and_others_count_as_unreadable(
    tmp_path: Path, icon_sources: Path, encoder: Encoder
) -> None:
    good, latin, broken, again = (path.read_bytes() for path in sorted((icon_sources / "pictures").iterdir())[:4])
    members = [("good.png", good), ("good.cls", b"0"), ("latin.png", latin), ("latin.txt", b"caf\xe9")]
    members += [("broken.png", broken), ("broken.json", b"{"), ("good.png", again)]
    members += [("damaged.png", good[:99]), ("empty.png", b"")]
    with (tmp_path / "0.tar").open("wb") as file, TarWriter(file) as tar:
        for name, data in members:
            tar.add(name, data)
    store, item = Store(tmp_path / "out"), Excluded(number=0, uri=str(tmp_path / "0.tar"), etag="1")
    record = read_excluded(item, encoder=encoder, store=store)
    assert (record.n_pictures, record.n_unreadable) == (4, 2)
    known = Evaluation.read(store)
    assert known is not None
    assert known.by_bytes.keys() == {sha256(data) for data in (good, latin, broken, again)}


def a_set(root: Path, *pictures: str) -> Path:
    for picture in pictures:
        (root / picture).parent.mkdir(parents=True, exist_ok=True)
        (root / picture).write_bytes(b"a picture")
    return root


@pytest.mark.parametrize(
    ("pictures", "read", "says"),
    [
        (["test/cat/1.png", "train/cat/2.png"], {"test"}, "read test; train is for training and is not read"),
        (["val/cat/1.png", "Train/cat/2.png"], {"val"}, "read val; Train is for training"),
        (
            ["TRAIN/cat/1.png", "Validation/cat/2.png", "dev/a/3.png"],
            {"Validation", "dev"},
            "read Validation, dev; TRAIN",
        ),
        (["test/cat/1.png"], {"test"}, "read test"),
        (["test/1.png", "train/2.png"], {"test"}, "read test; train"),
        (
            ["test/cat/1.png", "train/cat/2.png", "loose.png", "classnames.txt"],
            {"test"},
            "passed over loose.png, classnames.txt",
        ),
        (["cat/1.png", "training/2.png"], {"cat", "training"}, "no splits, all folders are read"),
        (["a/cat/1.png", "b/cat/2.png"], {"a", "b"}, "no splits, all folders are read"),
    ],
)
@pytest.mark.parametrize("protocol", ["", "file://"])
def test_a_set_of_picture_folders_is_read_but_for_what_models_learn_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pictures: list[str], read: set[str], says: str, protocol: str
) -> None:
    root = f"{protocol}{a_set(tmp_path / 'shapes', *pictures)}"
    uris = [item.uri for item in find_excluded([root])]
    assert uris
    met = {folder for folder in {p.split("/")[0] for p in pictures} if any(folder in _after(uri) for uri in uris)}
    assert met == read
    told = capsys.readouterr().err
    assert f"evaluation set {root}: " in told
    assert says in told


def _after(uri: str) -> list[str]:
    """Names of the folders of a source, below the set."""
    return uri.replace("#folder=", "/").replace("%2F", "/").split("/shapes", 1)[1].strip("/").split("/")


def test_tars_and_pictures_follow_one_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["Train/nshards.txt", "Train/0.tar", "test/nshards.txt", "test/0.tar", "val/cat/1.png", "other/2.png"]
    root = a_set(tmp_path / "shapes", *names)
    uris = [item.uri for item in find_excluded([str(root)])]
    assert len(uris) == 2
    assert uris[0].endswith("shapes/test/0.tar")
    assert "shapes/val" in uris[1]
    assert "read test, val; Train is for training and is not read; passed over other" in capsys.readouterr().err


@pytest.mark.parametrize("pictures", [["train/cat/1.png"], ["Train/1.png"], ["train/nshards.txt", "train/0.tar"]])
def test_a_set_to_learn_from_alone_is_refused_with_the_way_out(tmp_path: Path, pictures: list[str]) -> None:
    root = a_set(tmp_path / "shapes", *pictures)
    with pytest.raises(UsageError, match="only a train split; to exclude it, name its folder"):
        find_excluded([str(root)])
    assert find_excluded([str(root / pictures[0].split("/")[0])])


def test_a_class_of_trains_is_not_taken_for_a_split_in_silence(tmp_path: Path) -> None:
    root = a_set(tmp_path / "vehicles", "bus/1.png", "train/2.png")
    with pytest.raises(UsageError, match="train may be a class or a split: name the folders"):
        find_excluded([str(root)])
    assert len(find_excluded([str(root / "bus"), str(root / "train")])) == 2
