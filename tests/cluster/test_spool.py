"""Bodies and answers that wait for clients: what is held, and that it is let go."""

import asyncio
import contextlib
import tempfile

import pytest

from cluster.spool import CHUNK_BYTES, NoRoomError, Spools


def sent(response) -> bytes:
    async def send(message) -> None:
        pieces.append(message.get("body", b""))

    async def receive():
        await asyncio.Event().wait()

    pieces: list[bytes] = []
    asyncio.run(response({"type": "http"}, receive, send))
    assert max(map(len, pieces)) <= CHUNK_BYTES
    return b"".join(pieces)


@pytest.mark.parametrize("n_bytes", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 10 * CHUNK_BYTES])
def test_what_was_written_is_sent_and_only_what_is_long_is_held(n_bytes: int) -> None:
    spools, data = Spools(20 * CHUNK_BYTES), bytes(range(256)) * (n_bytes // 256) + bytes(n_bytes % 256)
    response = spools.answer(lambda file: [file.write(data[:100]), file.write(data[100:])], "text/plain")
    assert response.headers["content-length"] == str(n_bytes)
    assert spools.held_bytes == (n_bytes if n_bytes > CHUNK_BYTES else 0)
    assert sent(response) == data
    assert spools.held_bytes == 0
    with spools.open() as spool:
        spool.write(data)
        assert bytes(spool.content()) == data
    assert spools.held_bytes == 0


def test_what_goes_back_and_writes_again_is_held_once() -> None:
    spools = Spools(10 * CHUNK_BYTES)
    with spools.open() as spool:
        for _ in range(20):
            spool.seek(0)
            spool.write(bytes(5 * CHUNK_BYTES))
        assert spools.held_bytes == spool.n_bytes == 5 * CHUNK_BYTES


def test_more_than_there_is_room_for_is_refused_and_leaves_nothing() -> None:
    spools = Spools(2 * CHUNK_BYTES)
    with spools.open() as first:
        first.write(bytes(2 * CHUNK_BYTES))
        with pytest.raises(NoRoomError, match="wait for other clients"):
            spools.answer(lambda file: file.write(bytes(CHUNK_BYTES + 1)), "text/plain")
        assert spools.held_bytes == 2 * CHUNK_BYTES
        assert sent(spools.answer(lambda file: file.write(b"short"), "text/plain")) == b"short"
    assert spools.held_bytes == 0


def test_who_leaves_frees_what_it_did_not_take() -> None:
    async def leave() -> None:
        async def send(message) -> None:
            if message.get("body"):
                await asyncio.Event().wait()  # nothing is taken

        async def receive():
            await asyncio.sleep(0.1)
            return {"type": "http.disconnect"}

        await response({"type": "http"}, receive, send)

    spools = Spools(10 * CHUNK_BYTES)
    response = spools.answer(lambda file: file.write(bytes(5 * CHUNK_BYTES)), "text/plain")
    asyncio.run(leave())
    assert spools.held_bytes == 0


def test_a_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    spools = Spools(10 * CHUNK_BYTES)
    with contextlib.closing(spools.open()) as spool, pytest.raises(NoRoomError, match="cannot write to /nowhere"):
        spool.write(bytes(2 * CHUNK_BYTES))
    assert spools.held_bytes == 0
