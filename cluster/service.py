"""A memory over HTTP: queries of all kinds with the recall that is stated of them, rows, vectors and pictures.

People and pages speak JSON (``/search``). Programs that ask much send and get arrays (``/bulk``), as
``memory_builder.remote.RemoteMemory`` does.
"""

import io
from importlib.resources import files
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.served import Question, Served, ServiceConfig, Settings
from memory_builder.errors import MemoryBuilderError, RequestError, UsageError
from memory_builder.images import DAMAGE
from memory_builder.shards.pictures import Missing


def create_app(config: ServiceConfig) -> FastAPI:
    """Return the service as an ASGI application; the memory is opened here.

    Raises:
        MemoryBuilderError: as ``Memory.open``.
    """
    served = Served(config)
    app = FastAPI(title="memory-builder", redoc_url=None)
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes)
    app.add_exception_handler(MemoryBuilderError, _tell)
    app.add_exception_handler(RequestValidationError, _tell_invalid)
    app.add_exception_handler(HTTPException, _tell_http)
    page = files("cluster").joinpath("page.html").read_text("utf-8")

    @app.get("/", response_class=HTMLResponse)
    def look() -> str:
        return page

    @app.get("/info")
    def info() -> dict[str, Any]:
        return served.info()

    @app.post("/search")
    def search(question: Question) -> dict[str, Any]:
        return served.answer(question)

    @app.get("/pictures/{row_id}")
    def picture(row_id: int) -> Response:
        found = served.picture(row_id)
        if isinstance(found, Missing):
            raise HTTPException(404, f"row {row_id}: its picture is {found.reason}")
        return Response(found, media_type=_media_type(found), headers={"X-Content-Type-Options": "nosniff"})

    _add_bulk(app, served)
    return app


def _add_bulk(app: FastAPI, served: Served) -> None:
    """Add what programs ask: bodies are .npy files, answers .npz, .npy and Arrow streams."""

    @app.post("/bulk/search")
    async def search(request: Request, settings: Annotated[Settings, Query()]) -> Response:
        queries = _array(await request.body(), "fiu")

        def answer() -> bytes:
            hits, stream = served.search(queries, settings), io.BytesIO()
            np.savez(stream, scores=hits.scores, ids=hits.ids)
            return stream.getvalue()

        return Response(await run_in_threadpool(answer), media_type="application/x-npz")

    @app.post("/bulk/vectors")
    async def vectors(request: Request, keys: Literal["image", "text"] = "image") -> Response:
        ids = _array(await request.body(), "iu")

        def answer() -> bytes:
            stream = io.BytesIO()
            np.save(stream, served.vectors(ids, keys))
            return stream.getvalue()

        return Response(await run_in_threadpool(answer), media_type="application/x-npy")

    @app.post("/bulk/rows")
    async def rows(request: Request, columns: Annotated[list[str], Query()]) -> Response:
        ids = _array(await request.body(), "iu")

        def answer() -> bytes:
            table, sink = served.rows(ids, columns), pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            return bytes(sink.getvalue())

        return Response(await run_in_threadpool(answer), media_type="application/vnd.apache.arrow.stream")


class BodyLimit:
    """Refuses bodies that are too long, as they come in."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.max_bytes:
                raise HTTPException(413, f"a request of more than {self.max_bytes:,} bytes: ask in several")
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)


def _array(body: bytes, kinds: str) -> npt.NDArray[Any]:
    """The .npy file of a body, if it holds numbers of these kinds."""
    try:
        array: npt.NDArray[Any] = np.lib.format.read_array(io.BytesIO(body), allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError) as error:
        raise UsageError(f"the body is not a .npy file: {error}") from None
    if array.dtype.kind not in kinds:
        raise UsageError(f"the body holds {array.dtype}: expected numbers of another kind")
    return array


def _media_type(picture: bytes) -> str:
    try:
        with Image.open(io.BytesIO(picture)) as image:
            return image.get_format_mimetype() or "application/octet-stream"
    except (*DAMAGE, Image.DecompressionBombError):
        return "application/octet-stream"


def _tell(_: Request, error: Exception) -> JSONResponse:
    """400 for what cannot be done as asked, 503 for what this service cannot do now."""
    return JSONResponse({"error": str(error)}, 400 if isinstance(error, RequestError) else 503)


def _tell_http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


def _tell_invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    wrong = "; ".join(f"{'.'.join(map(str, one['loc'][1:])) or 'body'}: {one['msg']}" for one in error.errors())
    return JSONResponse({"error": wrong}, 400)
