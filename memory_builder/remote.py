"""``RemoteMemory``: a memory behind ``memory-builder serve``, with the methods of ``Memory``."""

import base64
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import urllib3
from PIL import Image

from memory_builder.base.arguments import one_modality, several
from memory_builder.base.types import NO_ROW, Modality, Scores
from memory_builder.catalog.description import Description
from memory_builder.catalog.metadata import FIXED_FIELDS, LOOKUP_FIELDS
from memory_builder.catalog.snapshots import IndexView, Snapshot
from memory_builder.errors import ConnectionFailedError, MemoryBuilderError, UsageError
from memory_builder.model.images import to_rgb
from memory_builder.search.hits import Hits
from memory_builder.search.queries import Picture
from memory_builder.search.tuned import stated_recall
from memory_builder.storage.formats import npy_bytes

ROWS, BYTES = 200_000, 64 << 20
"""Limits of one binary request or response; larger arrays are sent in several."""
QUERIES, JSON_BYTES = 1_000, 16 << 20
"""Limits of one JSON request."""
RETRIES = 3
"""Retries of a request that met no server or a starting service; a slow response is not retried."""


class RemoteMemory:
    """Client of ``memory-builder serve``, safe to use from several threads; the model runs in the service. Use
    ``open``.

    A ``Searchable`` like ``Memory``: ``RecoModel.encode_image``, for example, takes either.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        retries = urllib3.Retry(RETRIES, read=0, allowed_methods=None, status_forcelist=(502, 504), backoff_factor=0.2)
        self._url, self._pool = url.rstrip("/"), urllib3.PoolManager(retries=retries, timeout=timeout_s)
        self.description = Description(**self.info()["description"])

    @staticmethod
    def open(url: str, *, timeout_s: float = 60.0) -> "RemoteMemory":
        """Connect to the service at ``http://HOST:PORT``.

        Raises:
            UsageError: ``url`` is not an http address, or the server is not a memory-builder service.
            ConnectionFailedError: no server answers at ``url``.
        """
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{url}: expected the http:// address of a memory-builder serve")
        return RemoteMemory(url, timeout_s)

    def __len__(self) -> int:
        """Number of rows that are not deleted, now."""
        return int(self.info()["rows"])

    def __repr__(self) -> str:
        return f"RemoteMemory({self._url!r})"

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot that the service searches now."""
        fields = self.info()["snapshot"]
        views = {keys: IndexView(**view) for keys, view in fields.pop("indexes").items()}
        return Snapshot(indexes=views, **fields)

    def info(self) -> dict[str, Any]:
        """Number of rows, description, snapshot, and the search parameters and recall of each index."""
        body = self._send("GET", "/info")
        try:
            fields: dict[str, Any] = json.loads(body)
            fields["description"], fields["snapshot"]
        except (ValueError, LookupError, TypeError):
            raise UsageError(f"{self._url} is not a memory-builder service: it returned {body[:100]!r}") from None
        return fields

    def search(
        self,
        text: str | Sequence[str] | None = None,
        *,
        image: Picture | Sequence[Picture] | None = None,
        vectors: npt.ArrayLike | None = None,
        k: int = 10,
        query_modality: Modality | None = None,
        modality: Modality | None = None,
        where: str | None = None,
        nprobe: int | None = None,
        refine: int | None = None,
        side: Modality | None = None,
        keys: Modality | None = None,
    ) -> Hits:
        """Search as ``Memory.search`` does, in the service's latest snapshot.

        Raises:
            UsageError: the service rejects the query.
            ConnectionFailedError: the service does not answer.
            MemoryBuilderError: the service fails to answer now.
        """
        settings = {
            "k": k,
            "query_modality": query_modality or side,
            "modality": one_modality(modality, keys),
            "where": where,
            "nprobe": nprobe,
            "refine": refine,
        }
        settings = {name: _plain(value) for name, value in settings.items() if value is not None}
        if vectors is not None and text is None and image is None:
            return _joined(self, [self._search(block, settings) for block in _blocks(_numbers(vectors), k)])
        if (text is None) == (image is None) or vectors is not None:
            raise UsageError("give exactly one of text, image and vectors")
        if text is not None:
            name, queries = "text", [text] if isinstance(text, str) else list(text)
        else:
            pictures = [image] if isinstance(image, str | Path | bytes | Image.Image) else image or ()
            name, queries = "image", [_encoded(picture) for picture in pictures]
        return _joined(self, [self._search_json(settings | {name: block}, k) for block in _json_blocks(queries)])

    def rows(self, ids: npt.ArrayLike, columns: str | Sequence[str] = LOOKUP_FIELDS) -> pa.Table:
        """As ``Memory.rows``."""
        query = {"columns": several(columns)}
        bodies = _blocks(np.ravel(np.asarray(ids, np.int64)))
        blocks = [self._send("POST", "/bulk/rows", query, body) for body in bodies]
        return pa.concat_tables([pa.ipc.open_stream(block).read_all() for block in blocks])

    def metadata(self, ids: npt.ArrayLike, columns: str | Sequence[str] | None = None) -> pa.Table:
        """As ``Memory.metadata``."""
        every = [*(name for name, _ in FIXED_FIELDS), *self.description.columns, "extra"]
        names = every if columns is None else list(several(columns))
        return self.rows(ids, names).select(names)

    def stated_recall(self, modality: Modality = "image", query_modality: str | None = None) -> dict[str, float] | None:
        """As ``Memory.stated_recall``."""
        return stated_recall(self.info()["indexes"][modality], query_modality)

    def vectors(self, ids: npt.ArrayLike, modality: Modality | None = None, *, keys: Modality | None = None) -> Scores:
        """As ``Memory.vectors``."""
        query = {"modality": one_modality(modality, keys)}
        bodies = _blocks(np.ravel(np.asarray(ids, np.int64)), row_bytes=4 * self.description.d)
        blocks = [np.load(io.BytesIO(self._send("POST", "/bulk/vectors", query, body))) for body in bodies]
        vectors: Scores = np.concatenate(blocks)
        return vectors

    def picture(self, row_id: int) -> bytes:
        """The encoded picture of a row.

        Raises:
            UsageError: the row has no readable picture.
        """
        return self._send("GET", f"/pictures/{row_id}")

    def _search_json(self, body: Mapping[str, Any], k: int) -> Hits:
        answers = json.loads(self._send("POST", "/search", body=json.dumps(body).encode()))
        return _hits([answer["hits"] for answer in answers["queries"]], k)

    def _search(self, body: bytes, settings: Mapping[str, Any]) -> Hits:
        with np.load(io.BytesIO(self._send("POST", "/bulk/search", settings, body))) as arrays:
            return Hits(scores=arrays["scores"], ids=arrays["ids"])

    def _send(self, method: str, path: str, query: Mapping[str, Any] | None = None, body: bytes | None = None) -> bytes:
        url = f"{self._url}{path}" + (f"?{urlencode(query, doseq=True)}" if query else "")
        try:
            response = self._pool.request(method, url, body=body, headers={"content-type": "application/json"})
        except urllib3.exceptions.HTTPError as error:
            raise ConnectionFailedError(f"no service answers at {self._url}: {error}") from None
        if response.status == 200:
            return response.data
        try:
            message = json.loads(response.data)["error"]
        except (ValueError, LookupError, TypeError):
            message = f"not a memory-builder service: it returned {response.status} {response.data[:100]!r}"
        kind = UsageError if 400 <= response.status < 500 else MemoryBuilderError
        raise kind(f"{self._url}: {message}")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _numbers(vectors: npt.ArrayLike) -> npt.NDArray[Any]:
    try:
        given = np.atleast_2d(np.asarray(vectors))
    except ValueError as error:
        raise UsageError(f"query vectors are not numbers: {error}") from None
    if given.dtype.kind == "O":
        raise UsageError("query vectors are not numbers")
    return given


def _blocks(array: npt.NDArray[Any], k: int = 1, row_bytes: int = 8) -> list[bytes]:
    """Split an array into request bodies of at most ``ROWS`` hits and ``BYTES`` bytes; at least one body.

    ``row_bytes``: bytes of the response for each row.
    """
    rows = ROWS // k if isinstance(k, int | np.integer) and k > 0 else 1
    row_bytes = max(row_bytes, array.itemsize * math.prod(array.shape[1:]))
    size = max(1, min(rows, BYTES // max(1, row_bytes)))
    return [npy_bytes(array[at : at + size]) for at in range(0, max(1, len(array)), size)]


def _json_blocks(queries: Sequence[str]) -> Iterator[Sequence[str]]:
    """Split queries into runs that one JSON request may hold; at least one run."""
    start = n_bytes = 0
    for end, query in enumerate(queries):
        if end > start and (end - start == QUERIES or n_bytes + len(query) > JSON_BYTES):
            yield queries[start:end]
            start, n_bytes = end, 0
        n_bytes += len(query)
    yield queries[start:]


def _joined(memory: RemoteMemory, parts: Sequence[Hits]) -> Hits:
    scores, ids = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Hits(scores=scores, ids=ids, memory=memory)


def _encoded(picture: Picture) -> str:
    if isinstance(picture, Image.Image):
        to_rgb(picture).save(stream := io.BytesIO(), "png")
        data = stream.getvalue()
    else:
        try:
            data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        except (OSError, TypeError) as error:
            raise UsageError(f"cannot read the query image: {error}") from None
    return base64.b64encode(data).decode()


def _hits(answers: Sequence[Sequence[Mapping[str, Any]]], k: int) -> Hits:
    ids = np.full((len(answers), k), NO_ROW, np.int64)
    scores = np.full((len(answers), k), -np.inf, np.float32)
    for i, answer in enumerate(answers):
        ids[i, : len(answer)] = [hit["id"] for hit in answer]
        scores[i, : len(answer)] = [hit["score"] for hit in answer]
    return Hits(scores=scores, ids=ids)
