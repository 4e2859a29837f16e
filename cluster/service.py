"""A memory over HTTP: queries of all kinds with the recall that is stated of them, rows, vectors and pictures.

People and pages speak JSON (``/search``). Programs that ask much send and get arrays (``/bulk``), as
``memory_builder.remote.RemoteMemory`` does. What takes long, parsing included, is done in threads.
"""

import io
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from typing import Annotated, Any, Literal

import anyio
import numpy as np
import pyarrow as pa
from fastapi import FastAPI, HTTPException, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from PIL import Image
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from cluster.bodies import describe_faults, parse_array, parse_question, read_body
from cluster.description import (
    ARRAYS,
    ARROW,
    BAD,
    NOT_READ,
    NPY,
    NPZ,
    PICTURES,
    TOO_LONG,
    body_of,
    describe,
    description_page,
    page_policy,
)
from cluster.gate import Gate, HostNames, error_answer
from cluster.served import Answers, Info, Question, Served, ServiceConfig, Settings
from memory_builder.errors import MemoryBuilderError, RequestError, UsageError
from memory_builder.images import FORMATS
from memory_builder.shards.pictures import Missing

PICTURES_AT_ONCE = 8
"""They may lie far away: whoever waits for one keeps no search waiting."""


def create_app(config: ServiceConfig) -> FastAPI:
    """Return the service as an ASGI application; the memory is opened here.

    Raises:
        MemoryBuilderError: as ``Memory.open``.
    """
    served = Served(config)
    page = files("cluster").joinpath("page.html").read_text("utf-8")
    app = FastAPI(title="memory-builder", docs_url=None, redoc_url=None)
    app.add_middleware(
        Gate, hosts=HostNames(config.host, config.server_names), page_policy=page_policy(page, description_page())
    )
    for kind, tell in _TELLERS.items():
        app.add_exception_handler(kind, tell)
    app.openapi = partial(describe, app)  # type: ignore[method-assign]

    @app.get("/", response_class=HTMLResponse, operation_id="page", summary="A page to search with")
    def look() -> str:
        return page

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def docs() -> str:
        return description_page(app.openapi())

    @app.get("/info", operation_id="info", summary="What is served", responses=NOT_READ, response_model=Info)
    def info() -> Any:
        return _json(Info(**served.info()))

    @app.post(
        "/search",
        operation_id="search",
        summary="Find the rows nearest to texts, pictures or vectors",
        responses=BAD | TOO_LONG | NOT_READ,
        response_model=Answers,
        openapi_extra=body_of("application/json", Question.described(served.memory().description.d, config.max_k)),
    )
    async def search(request: Request) -> Any:
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise UsageError("the content type is not application/json")
        body = await read_body(request, config.max_json_bytes)
        return await run_in_threadpool(lambda: _json(Answers(**served.answer(parse_question(body)))))

    _add_pictures(app, served)
    _add_bulk(app, served)
    return app


def _add_pictures(app: FastAPI, served: Served) -> None:
    at_once: list[anyio.CapacityLimiter] = []  # made where there is a loop

    @app.get(
        "/pictures/{row_id}",
        operation_id="picture",
        summary="The encoded picture of a row, read from where it was embedded from",
        responses=PICTURES | BAD | NOT_READ,
        response_class=Response,
    )
    async def picture(row_id: Annotated[int, Path(ge=0, lt=1 << 63, description="id of a hit")]) -> Response:
        if not at_once:
            at_once.append(anyio.CapacityLimiter(PICTURES_AT_ONCE))
        found = await anyio.to_thread.run_sync(served.picture, row_id, limiter=at_once[0])
        if isinstance(found, Missing):
            raise HTTPException(404, f"row {row_id}: its picture is {found.reason}")
        return Response(found, media_type=_media_type(found))


def _add_bulk(app: FastAPI, served: Served) -> None:
    """Add what programs ask: bodies are .npy files, answers .npz, .npy and Arrow streams."""
    array = body_of(NPY, {"type": "string", "format": "binary"})
    most = served.config.max_body_bytes

    async def answered(request: Request, kinds: str, answer: Callable[[Any], bytes], media_type: str) -> Response:
        body = await read_body(request, most)
        data = await run_in_threadpool(lambda: answer(parse_array(body, kinds)))
        return Response(data, media_type=media_type)

    @app.post(
        "/bulk/search",
        operation_id="bulk_search",
        summary="f32[q, d] vectors → an .npz of scores f32[q, k] and ids i64[q, k]",
        responses=ARRAYS[NPZ] | BAD | TOO_LONG | NOT_READ,
        response_class=Response,
        openapi_extra=array,
    )
    async def search(request: Request, settings: Annotated[Settings, Query()]) -> Response:
        def answer(queries: Any) -> bytes:
            hits, stream = served.search(queries, settings), io.BytesIO()
            np.savez(stream, scores=hits.scores, ids=hits.ids)
            return stream.getvalue()

        return await answered(request, "fiu", answer, NPZ)

    @app.post(
        "/bulk/vectors",
        operation_id="bulk_vectors",
        summary="i64[n] ids → f32[n, d] stored vectors",
        responses=ARRAYS[NPY] | BAD | TOO_LONG | NOT_READ,
        response_class=Response,
        openapi_extra=array,
    )
    async def vectors(request: Request, keys: Literal["image", "text"] = "image") -> Response:
        def answer(ids: Any) -> bytes:
            stream = io.BytesIO()
            np.save(stream, served.vectors(ids, keys))
            return stream.getvalue()

        return await answered(request, "iu", answer, NPY)

    @app.post(
        "/bulk/rows",
        operation_id="bulk_rows",
        summary="i64[n] ids → an Arrow stream of these columns, a row for each",
        responses=ARRAYS[ARROW] | BAD | TOO_LONG | NOT_READ,
        response_class=Response,
        openapi_extra=array,
    )
    async def rows(request: Request, columns: Annotated[list[str], Query(max_length=100)]) -> Response:
        def answer(ids: Any) -> bytes:
            table, sink = served.rows(ids, columns), pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            return bytes(sink.getvalue())

        return await answered(request, "iu", answer, ARROW)


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def _media_type(picture: bytes) -> str:
    with Image.open(io.BytesIO(picture), formats=FORMATS) as image:
        return image.get_format_mimetype() or "application/octet-stream"


def _tell(_: Request, error: Exception) -> Response:
    """400 for what cannot be done as asked, 503 for what this service cannot do now."""
    return error_answer(400 if isinstance(error, RequestError) else 503, str(error))


def _tell_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    answer = error_answer(error.status_code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


def _tell_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [one | {"loc": one["loc"][1:]} for one in error.errors()]
    return error_answer(400, describe_faults(faults))


def _tell_no_one(_: Request, __: Exception) -> Response:
    return error_answer(400, "the client left before its request was whole")


_TELLERS: dict[type[Exception], Callable[[Request, Exception], Response]] = {
    MemoryBuilderError: _tell,
    RequestValidationError: _tell_invalid,
    StarletteHTTPException: _tell_http,
    ClientDisconnect: _tell_no_one,
}
