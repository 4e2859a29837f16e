"""Prompt templates with a placeholder for the class name. CLIP's own for its data sets (github.com/openai/CLIP,
data/prompts.md) are built in, by the name of the set."""

import json
from functools import cache
from pathlib import Path

from memory_builder.errors import UsageError

BUILT_IN = Path(__file__).with_name("templates.json")
NAME_MARKS = ("{c}", "{}")


@cache
def built_in_templates() -> dict[str, tuple[str, ...]]:
    """Data set → its prompts."""
    return {name: tuple(prompts) for name, prompts in json.loads(BUILT_IN.read_text(encoding="utf-8")).items()}


def read_templates(named: str) -> tuple[str, ...]:
    """Read prompts of a built-in set, or of a file: one a line, or a JSON list, with ``{c}`` or ``{}`` for the name.

    An argument with a placeholder is itself the only prompt.

    Raises:
        UsageError: the name is neither a built-in set nor a file, or a prompt has no placeholder.
    """
    if named in built_in_templates():
        return built_in_templates()[named]
    path = Path(named)
    if any(mark in named for mark in NAME_MARKS) and not path.exists():
        return (named,)
    if not path.is_file():
        raise UsageError(f"--templates {named}: neither a file nor a built-in set ({', '.join(built_in_templates())})")
    try:
        text = path.read_text(encoding="utf-8-sig")
        prompts = json.loads(text) if path.suffix == ".json" else [line for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UsageError(f"--templates {path} cannot be read: {error}") from None
    if not isinstance(prompts, list) or not prompts:
        raise UsageError(f"--templates {path} holds no prompts: expected one a line, such as 'a photo of a {{c}}.'")
    for prompt in prompts:
        if not isinstance(prompt, str) or not any(mark in prompt for mark in NAME_MARKS):
            raise UsageError(f"--templates {path}: prompt {prompt!r} has no {{c}} for the class name: add it")
    return tuple(prompts)


def fill(template: str, name: str) -> str:
    """Insert the name into a prompt; braces in the name are kept.

    Raises:
        UsageError: the prompt has no placeholder.
    """
    mark = next((mark for mark in NAME_MARKS if mark in template), None)
    if mark is None:
        raise UsageError(f"prompt {template!r} has no {{c}} for the class name: add it")
    return name.join(template.split(mark))
