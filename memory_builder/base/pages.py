"""Render HTML pages from templates. A page is one file that loads nothing, and all pages share one stylesheet."""

import base64
import re
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

OWN = "memory_builder.base"


def render(template: str, *, title: str, **values: Any) -> str:
    """Render a page; every value is escaped unless it has ``__html__``, as a chart does.

    Args:
        template: the package that ships it, a slash, and the file's name.
    """
    return _environment().get_template(template).render(title=title, style=stylesheet(), **values)


def data_uri(data: bytes, media_type: str) -> str:
    """Encode bytes as a ``data:`` URI."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


@cache
def stylesheet() -> str:
    """The CSS of all pages."""
    return _read(f"{OWN}/page.css")


@cache
def palette(*, dark: bool = False) -> dict[str, str]:
    """Colours of the stylesheet by name: paper, raised, ink, soft, line, c0 to c3."""
    colours = re.findall(r"--(\w+): light-dark\((#\w+), (#\w+)\)", stylesheet())
    return {name: dark_one if dark else light_one for name, light_one, dark_one in colours}


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _read(name: str) -> str:
    package, _, file = name.partition("/")
    return files(package).joinpath(file).read_text("utf-8")
