"""What the site changes in a page: links to files of the repository that are no pages become their names."""

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """``[text](../SECURITY.md)`` → text, and the file's path in the repository."""
    return re.sub(r"(?<!!)\[([^\]]+)\]\(\.\./([^)\s#]+)(#[^)]*)?\)", _named, markdown)


def _named(link: "re.Match[str]") -> str:
    text, path = link[1], link[2]
    return f"`{path}`" if text.strip("`") in (path, path.rsplit("/", 1)[-1]) else f"{text} (`{path}`)"
