"""Describe the service: pages, OpenAPI, and the Content-Security-Policy that allows only our scripts."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from memory_builder.base.pages import render

NPY, NPZ, ARROW = "application/x-npy", "application/x-npz", "application/vnd.apache.arrow.stream"
PICTURE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff", "image/avif")
Responses = dict[int | str, dict[str, Any]]

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ERROR = {
    "application/json": {
        "schema": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]},
        "example": {"error": "k 0: expected a whole number, at least 1"},
    }
}


def _error(status: int, description: str) -> Responses:
    return {status: {"description": description, "content": _ERROR}}


BAD = _error(400, "The request is invalid or too large; the message says what and why.")
TOO_LONG = _error(413, "The body is too long.")
NOT_READ = _error(503, "The memory cannot be read now, or the service is overloaded (then with Retry-After).")
ARRAYS: dict[str, Responses] = {
    kind: {200: {"description": "The result.", "content": {kind: _BINARY}}} for kind in (NPY, NPZ, ARROW)
}
PICTURES: Responses = {
    200: {"description": "The encoded image.", "content": dict.fromkeys(PICTURE_TYPES, _BINARY)},
    **_error(404, "The row has no image, or it cannot be read any more or must not be shown; the message says which."),
}


def body_of(media_type: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI request body of a route that parses its body itself."""
    return {"requestBody": {"required": True, "content": {media_type: {"schema": dict(schema)}}}}


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI schema of the service, without the 422 that it never returns."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                operation["responses"].setdefault("400", BAD[400])  # a Host that is not allowed
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        app.openapi_schema = schema
    return app.openapi_schema


def search_page() -> str:
    """Render the search page."""
    return render("cluster/page.html", title="memory-builder")


def description_page(schema: Mapping[str, Any] | None = None) -> str:
    """Render the OpenAPI schema as plain HTML, without scripts."""
    paths = (schema or {"paths": {}})["paths"]
    return render(
        "cluster/description.html", title="memory-builder: HTTP", paths=paths, as_json=partial(json.dumps, indent=1)
    )


def page_policy(*pages: str) -> str:
    """Return the Content-Security-Policy for these pages: their own scripts only, and no external resources."""
    scripts = _hashes("script", pages)
    return (
        f"default-src 'none'; script-src {scripts}; style-src {_hashes('style', pages)}; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(tag: str, pages: tuple[str, ...]) -> str:
    contents = dict.fromkeys(content for page in pages for content in re.findall(rf"(?s)<{tag}>(.*?)</{tag}>", page))
    digests = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
