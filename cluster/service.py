"""HTTP service of a memory: search with stated recall, rows, vectors and pictures.

People and pages use JSON (``/search``). Programs send and receive arrays (``/bulk``), as
``memory_builder.remote.RemoteMemory`` does. Slow work, parsing included, runs in threads.
"""

import io
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import IO, Annotated, Any, TypeVar

import anyio
import numpy as np
import pyarrow as pa
from fastapi import FastAPI, HTTPException, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from PIL import Image
from pydantic import BaseModel, BeforeValidator
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

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
    search_page,
)
from cluster.gate import Gate, HostNames, error_answer
from cluster.request_bodies import describe_faults, parse_array, parse_question, read_body
from cluster.session import ServiceConfig, Session
from cluster.spool import NoRoomError, Spool, Spools, return_freed_memory
from cluster.wire import FORMER_NAME, Answers, Info, Question, Settings
from memory_builder.base.arguments import one_modality
from memory_builder.base.types import Modality
from memory_builder.errors import MemoryBuilderError, RequestError, UsageError
from memory_builder.model.images import FORMATS

Result = TypeVar("Result")
PICTURES_AT_ONCE = 8
"""Limit of concurrent picture reads, which may be slow: they must not block searches."""
BULK_AT_ONCE = 8
"""Limit of concurrent bulk requests: each may take hundreds of megabytes."""
RETRY_AFTER_S = 5
"""Retry-After when the spool is full: stalled clients time out meanwhile."""


def create_app(config: ServiceConfig) -> FastAPI:
    """Create the service as an ASGI application; opens the memory.

    Raises:
        MemoryBuilderError: as ``Memory.open``.
    """
    return_freed_memory()
    session, spools = Session(config), Spools(config.max_spool_bytes)
    page = search_page()
    app = FastAPI(title="memory-builder", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(
        Gate, hosts=HostNames(config.host, config.server_names), page_policy=page_policy(page, description_page())
    )
    for kind, handler in _ERROR_HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.openapi = partial(describe, app)  # type: ignore[method-assign]

    @app.get("/", response_class=HTMLResponse, operation_id="page", summary="Search page")
    def look() -> str:
        return page

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def docs() -> str:
        return description_page(app.openapi())

    @app.get("/info", operation_id="info", summary="State of the memory", responses=NOT_READ, response_model=Info)
    def info() -> Any:
        return _json(Info(**session.info()))

    @app.post(
        "/search",
        operation_id="search",
        summary="Search with texts, pictures or vectors",
        responses=BAD | TOO_LONG | NOT_READ,
        response_model=Answers,
        openapi_extra=body_of("application/json", Question.described(session.memory().description.d, config.max_k)),
    )
    async def search(request: Request) -> Any:
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise UsageError("the content type is not application/json")

        def answer(body: Spool) -> Response:
            answers = Answers(**session.answer(parse_question(bytes(body.content()))))
            return spools.answer(lambda file: file.write(answers.model_dump_json().encode()), "application/json")

        with spools.open() as body:
            await read_body(request, body, config.max_json_bytes)
            return await run_in_threadpool(answer, body)

    _add_pictures(app, session, spools)
    _add_bulk(app, session, spools)
    return app


class ThreadLimit:
    """Runs calls in threads, at most ``n_calls`` at a time."""

    def __init__(self, n_calls: int) -> None:
        self._n_calls = n_calls
        self._limiter: anyio.CapacityLimiter | None = None

    async def run(self, call: Callable[..., Result], *arguments: Any) -> Result:
        """Run a call in a thread and return its result."""
        if self._limiter is None:  # created within the event loop
            self._limiter = anyio.CapacityLimiter(self._n_calls)
        return await anyio.to_thread.run_sync(call, *arguments, limiter=self._limiter)


def _add_pictures(app: FastAPI, session: Session, spools: Spools) -> None:
    at_once = ThreadLimit(PICTURES_AT_ONCE)

    @app.get(
        "/pictures/{row_id}",
        operation_id="picture",
        summary="Encoded picture of a row, read from its source",
        responses=PICTURES | BAD | NOT_READ,
        response_class=Response,
    )
    async def picture(
        row_id: Annotated[int, BeforeValidator(_digits), Path(ge=0, lt=1 << 63, description="id of a hit")],
    ) -> Response:
        try:
            encoded = await at_once.run(session.picture, row_id)
        except UsageError as error:
            raise HTTPException(404, str(error)) from None
        return await run_in_threadpool(spools.answer, lambda file: file.write(encoded), _media_type(encoded))


def _add_bulk(app: FastAPI, session: Session, spools: Spools) -> None:
    """Add routes for programs: bodies are .npy files, responses .npz, .npy and Arrow streams."""
    array = body_of(NPY, {"type": "string", "format": "binary"})
    most, at_once = session.config.max_body_bytes, ThreadLimit(BULK_AT_ONCE)

    async def answered(request: Request, kinds: str, write: Callable[[Any, IO[bytes]], Any], kind: str) -> Response:
        _refuse_repeated(request, several="columns")

        def answer(body: Spool) -> Response:
            return spools.answer(partial(write, parse_array(body.content(), kinds)), kind)

        with spools.open() as body:
            await read_body(request, body, most)
            return await at_once.run(answer, body)

    @app.post(
        "/bulk/search",
        operation_id="bulk_search",
        summary="f32[q, d] vectors → an .npz of scores f32[q, k] and ids i64[q, k]",
        responses=ARRAYS[NPZ] | BAD | TOO_LONG | NOT_READ,
        response_class=Response,
        openapi_extra=array,
    )
    async def search(request: Request, settings: Annotated[Settings, Query()]) -> Response:
        def write(queries: Any, file: IO[bytes]) -> None:
            hits = session.search(queries, settings)
            np.savez(file, scores=hits.scores, ids=hits.ids)

        return await answered(request, "fiu", write, NPZ)

    @app.post(
        "/bulk/vectors",
        operation_id="bulk_vectors",
        summary="i64[n] ids → f32[n, d] stored vectors",
        responses=ARRAYS[NPY] | BAD | TOO_LONG | NOT_READ,
        response_class=Response,
        openapi_extra=array,
    )
    async def vectors(
        request: Request,
        modality: Annotated[Modality | None, Query(description="default: image")] = None,
        keys: Annotated[Modality | None, Query(description=FORMER_NAME, deprecated=True)] = None,
    ) -> Response:
        of = one_modality(modality, keys)

        def write(ids: Any, file: IO[bytes]) -> None:
            np.save(file, session.vectors(ids, of))

        return await answered(request, "iu", write, NPY)

    @app.post(
        "/bulk/rows",
        operation_id="bulk_rows",
        summary="i64[n] ids → Arrow stream of these columns, a row for each id",
        responses=ARRAYS[ARROW] | BAD | TOO_LONG | NOT_READ,
        response_class=Response,
        openapi_extra=array,
    )
    async def rows(request: Request, columns: Annotated[list[str], Query(max_length=100)]) -> Response:
        def write(ids: Any, file: IO[bytes]) -> None:
            table = session.rows(ids, columns)
            with pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)

        return await answered(request, "iu", write, ARROW)


def _digits(text: str) -> str:
    if not (text.isascii() and text.isdigit()):
        raise ValueError("expected digits")
    return text


def _refuse_repeated(request: Request, several: str) -> None:
    """Refuse a repeated query parameter, of which all values but one would be ignored; ``several`` may be repeated."""
    names = Counter(name for name, _ in request.query_params.multi_items() if name != several)
    if repeated := [name for name, n in names.items() if n > 1]:
        raise UsageError(f"{repeated[0][:100]} is given more than once")


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def _media_type(picture: bytes) -> str:
    with Image.open(io.BytesIO(picture), formats=FORMATS) as image:
        return image.get_format_mimetype() or "application/octet-stream"


def _memory_error(_: Request, error: Exception) -> Response:
    """400 for invalid requests, 503 for what the service cannot do now."""
    answer = error_answer(400 if isinstance(error, RequestError) else 503, str(error))
    if isinstance(error, NoRoomError):
        answer.headers["Retry-After"] = str(RETRY_AFTER_S)
    return answer


def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    answer = error_answer(error.status_code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


def _invalid_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [one | {"loc": one["loc"][1:]} for one in error.errors()]
    return error_answer(400, describe_faults(faults))


def _client_left(_: Request, __: Exception) -> Response:
    return error_answer(400, "the client disconnected before its request was complete")


_ERROR_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Response]] = {
    MemoryBuilderError: _memory_error,
    RequestValidationError: _invalid_request,
    StarletteHTTPException: _http_error,
    ClientDisconnect: _client_left,
}
