"""Evaluation pictures are known whatever else is wrong with their pairs; what is not known is counted."""

from pathlib import Path

from memory_builder.encoder import Encoder
from memory_builder.retrieve.exclude import Evaluation, Excluded, read_excluded
from memory_builder.retrieve.tars import TarWriter
from memory_builder.storage import Store, sha256


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
