"""Convert values of a pair's json or table row to typed columns or strict JSON."""

import base64
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

NOT_FINITE = "numbers in extra are not finite, which JSON has not: null there"
BYTES = "values in extra are bytes: kept in base64"
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_TRUTHS = {"true": True, "t": True, "yes": True, "1": True, "false": False, "f": False, "no": False, "0": False}
_INT64 = range(-(1 << 63), 1 << 63)


def converted(value: Any, kind: str) -> Any:
    """Convert a value to a string, int, float or bool; None if it has no such value.

    Texts are parsed, as all cells of a CSV are texts; a decimal becomes the nearest float; a date or time becomes
    seconds since 1970 (UTC without a time zone) as a number, and ISO 8601 as a string.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return None
    if kind == "string":
        return _as_string(value)
    if isinstance(value, str):
        value = value.strip()
        if kind == "bool":
            return _TRUTHS.get(value.lower())
        if not value.isascii() or not _NUMBER.fullmatch(value):
            return None
        value = Decimal(value)
    if isinstance(value, datetime | date):
        value = _seconds(value)
    if kind == "bool":
        return bool(value) if isinstance(value, bool | int | float | Decimal) and value in (0, 1) else None
    return _as_number(value, kind)


def _as_number(value: Any, kind: str) -> int | float | None:
    if not isinstance(value, bool | int | float | Decimal) or not math.isfinite(value):
        return None
    if kind == "float":
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if math.isfinite(number) else None
    try:
        return int(value) if value == int(value) and int(value) in _INT64 else None
    except (OverflowError, InvalidOperation):
        return None


def _as_string(value: Any) -> str | None:
    if isinstance(value, str):
        return value if is_unicode(value) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, int | float | Decimal | timedelta) else None


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _seconds(value: datetime | date) -> float:
    moment = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def strict_json(value: Any, notes: Counter[str]) -> str:
    """Serialise a value of any Arrow or Python type as canonical JSON that any parser reads."""
    try:
        text = json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError):
        text = ""
    if text and "\\ud" not in text:  # many parsers refuse lone surrogates
        return text
    return json.dumps(_plain(value, notes), sort_keys=True, allow_nan=False)


def _plain(value: Any, notes: Counter[str]) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # lone surrogates
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        notes[NOT_FINITE] += 1
        return None
    if isinstance(value, Mapping):
        return {_plain(str(key), notes): _plain(inner, notes) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, notes) for inner in value]
    if isinstance(value, bytes | bytearray):
        return _text_of(bytes(value), notes)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return _plain(str(value), notes)


def _text_of(value: bytes, notes: Counter[str]) -> str:
    """Decode bytes that are printable text, as some tools write texts; encode others in base64."""
    with suppress(UnicodeDecodeError):
        text = value.decode()
        if all(character.isprintable() or character.isspace() for character in text):
            return text
    notes[BYTES] += 1
    return base64.b64encode(value).decode()
