"""Names of shards are on disk, in plans and commits: what they look like never changes."""

import pytest

from memory_builder.readers.shard_uri import Piece, join_uri, split_uri


@pytest.mark.parametrize(
    ("piece", "uri"),
    [
        (Piece(), "data/a"),
        (Piece(folder="x/ä", items=(0, 10)), "data/a#folder=x/%C3%A4&items=0-10"),
        (Piece(bytes=(5, 9)), "data/a#bytes=5-9"),
        (Piece(embeddings="0007"), "data/a#embeddings=0007"),
        (Piece(vectors="v.npy", modality="text"), "data/a#vectors=v.npy&keys=text"),
        (Piece(rejects=3), "data/a#rejects=3"),
    ],
)
def test_a_piece_is_named_as_ever_and_read_back(piece: Piece, uri: str) -> None:
    assert join_uri("data/a", piece) == uri
    assert split_uri(uri) == ("data/a", piece)
