"""Metadata filters, such as ``width >= 256 AND language = 'en'``, evaluated to the rows that match.

The grammar is SQL's, as sqlglot parses it, cut down to ``ALLOWED``; nulls are as in SQL: a comparison with null is
neither true nor false, and only true keeps a row.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sqlglot
from sqlglot import exp
from sqlglot.tokens import TokenType

from memory_builder.catalog.row_bitmap import Mask, RowBitmap
from memory_builder.catalog.rows import Rows
from memory_builder.errors import UsageError

ALLOWED = "=, <>, <, <=, >, >=, AND, OR, NOT, IN (…), BETWEEN, LIKE, IS NULL, numbers, 'strings', TRUE, FALSE, columns"
READERS = 8
MAX_CHARACTERS = 4 << 20
"""Limit of a filter's length; a service allows less."""
MAX_DEPTH = 40
"""Limit of nested brackets, and of signs before a value."""
MAX_JOINED = 240
"""Limit of ANDs and ORs: each adds a level to their tree."""
_OPENING = frozenset({TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.L_BRACE, TokenType.CASE})
_CLOSING = frozenset({TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.R_BRACE, TokenType.END})
_PREFIXES = frozenset({TokenType.NOT, TokenType.DASH, TokenType.PLUS, TokenType.TILDE})
_JOINING = frozenset({TokenType.AND, TokenType.OR})
_ROW = "row of the shard"
_COMPARISONS: dict[type[Any], Callable[[Any, Any], Any]] = {
    exp.EQ: lambda a, b: a == b,
    exp.NEQ: lambda a, b: a != b,
    exp.LT: lambda a, b: a < b,
    exp.LTE: lambda a, b: a <= b,
    exp.GT: lambda a, b: a > b,
    exp.GTE: lambda a, b: a >= b,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """A parsed filter."""

    columns: tuple[str, ...]
    """Columns that the filter reads."""
    expression: pc.Expression


@dataclass(frozen=True, slots=True)
class _Value:
    """A subexpression with its kind: ``number``, ``string`` or ``boolean``."""

    kind: str
    expression: pc.Expression
    is_float: bool = False

    def as_float(self) -> "_Value":
        """Cast to float64: Arrow narrows a comparison's literal otherwise, and rejects one that does not fit."""
        return replace(self, expression=self.expression.cast(pa.float64(), safe=False), is_float=True)


def matching_rows(rows: Rows, where: str) -> RowBitmap:
    """Evaluate a filter to committed rows, deleted or not. Reads the filter's columns of every shard's metadata.

    Raises:
        UsageError: the filter is invalid; the message names the fault and the allowed syntax.
    """
    if not rows.commits:
        return RowBitmap([])
    filter_ = parse(where, rows.schema())

    def mask(ordinal: int) -> tuple[int, Mask]:
        table = rows.shard_metadata(ordinal, filter_.columns)
        n_rows = rows.commits[ordinal].n_written
        table = table.append_column(_ROW, pa.array(np.arange(n_rows)))
        kept = np.zeros(n_rows, np.bool_)
        kept[table.filter(filter_.expression)[_ROW].to_numpy()] = True
        return ordinal, kept

    def masks() -> Iterator[tuple[int, Mask]]:
        with ThreadPoolExecutor(READERS) as threads:
            yield from ((ordinal, kept) for ordinal, kept in threads.map(mask, rows.commits) if kept.any())

    return RowBitmap(masks())


def parse(where: str, schema: pa.Schema) -> Filter:
    """Parse a filter over columns of this schema.

    Raises:
        UsageError: the text is not an expression, or uses more than ``ALLOWED``, or compares unlike types, or is too
            long or too deeply nested.
    """
    if len(where) > MAX_CHARACTERS:
        raise UsageError(f"--where {_shown(where)} has {len(where):,} characters: at most {MAX_CHARACTERS:,}")
    try:
        tokens = sqlglot.tokenize(where)
        _check_depth(where, tokens)
        statements = sqlglot.Parser().parse(tokens, where)
        if len(statements) != 1 or statements[0] is None:
            raise UsageError(
                f"--where {_shown(where)}: expected one condition, such as width >= 256 AND caption LIKE '%cat%'"
            )
        compiler = _Compiler(where, schema)
        expression = compiler.condition(statements[0])
    except sqlglot.errors.SqlglotError as error:
        reason = re.sub(r"\x1b\[\d*m", "", str(error)).splitlines()[0]
        raise UsageError(f"--where {_shown(where)} cannot be read: {reason} Allowed are {ALLOWED}") from None
    except RecursionError:
        raise _too_deep(where) from None
    if not compiler.columns:
        raise UsageError(f"--where {_shown(where)} names no column: the columns are {', '.join(schema.names)}")
    return Filter(columns=tuple(sorted(compiler.columns)), expression=expression)


def _check_depth(where: str, tokens: Sequence[Any]) -> None:
    """Refuse filters whose parsing would take long or recurse deeply."""
    depth = prefixes = joined = 0
    for token in tokens:
        kind = token.token_type
        depth += (kind in _OPENING) - (kind in _CLOSING)
        prefixes = prefixes + 1 if kind in _PREFIXES else 0
        joined += kind in _JOINING
        if max(depth, prefixes) > MAX_DEPTH or joined > MAX_JOINED:
            raise _too_deep(where)


def _too_deep(where: str) -> UsageError:
    return UsageError(f"--where {_shown(where)}: nested too deeply; use IN (…) for long lists")


def _shown(where: str) -> str:
    return repr(where) if len(where) <= 200 else f"{where[:200]!r}…"


class _Compiler:
    """Compiles sqlglot's tree of one filter to an Arrow expression."""

    def __init__(self, where: str, schema: pa.Schema) -> None:
        self.where = where
        self.schema = schema
        self.columns: set[str] = set()

    def condition(self, node: Any) -> pc.Expression:
        """Compile a node that must be a condition."""
        value = self._value(node)
        if value.kind != "boolean":
            raise self._error(f"{node.sql()} is a {value.kind}, not a condition")
        return value.expression

    def _value(self, node: Any) -> _Value:
        kind = type(node)
        if kind in _COMPARISONS:
            return self._compared(node, _COMPARISONS[kind])
        compilers: dict[type[Any], Callable[[Any], _Value]] = {
            exp.Paren: lambda n: self._value(self._only(n, "this").this),
            exp.And: lambda n: self._joined(n, lambda a, b: a & b),
            exp.Or: lambda n: self._joined(n, lambda a, b: a | b),
            exp.Not: lambda n: _Value("boolean", ~self.condition(self._only(n, "this").this)),
            exp.In: self._in,
            exp.Between: self._between,
            exp.Like: self._like,
            exp.Is: self._is_null,
            exp.Column: self._column,
            exp.Literal: self._literal,
            exp.Neg: self._literal,
            exp.Boolean: lambda n: _Value("boolean", pc.scalar(bool(n.this))),
        }
        if kind is exp.Null:
            raise self._error("nothing equals NULL: write IS NULL or IS NOT NULL")
        if kind not in compilers:
            raise self._error(f"{node.sql()} ({node.key.upper()}) is not allowed")
        return compilers[kind](node)

    def _joined(self, node: Any, join: Callable[[Any, Any], Any]) -> _Value:
        self._only(node, "this", "expression")
        return _Value("boolean", join(self.condition(node.this), self.condition(node.expression)))

    def _compared(self, node: Any, compare: Callable[[Any, Any], Any]) -> _Value:
        self._only(node, "this", "expression")
        left, right = self._alike(node.this, node.expression)
        if left.kind == "boolean" and type(node) not in (exp.EQ, exp.NEQ):
            raise self._error(f"{node.sql()}: true and false have no order")
        return _Value("boolean", compare(left.expression, right.expression))

    def _between(self, node: Any) -> _Value:
        self._only(node, "this", "low", "high")
        value, low, high = self._alike(node.this, node.args["low"], node.args["high"])
        return _Value("boolean", (value.expression >= low.expression) & (value.expression <= high.expression))

    def _in(self, node: Any) -> _Value:
        self._only(node, "this", "expressions")
        if not node.expressions:
            raise self._error(f"{node.sql()}: the list is empty")
        for item in node.expressions:
            if not isinstance(item, exp.Literal | exp.Neg | exp.Boolean):
                raise self._error(f"{item.sql()} in a list: only numbers, 'strings', TRUE and FALSE can be")
        first = self._alike(node.this, *node.expressions)[0]
        listed = pa.array([_constant(item) for item in node.expressions], pa.float64() if first.is_float else None)
        value = first.expression
        # Arrow's isin is false for a null, which NOT would make true
        return _Value("boolean", pc.if_else(value.is_valid(), value.isin(listed), pa.scalar(None, pa.bool_())))

    def _like(self, node: Any) -> _Value:
        self._only(node, "this", "expression", "negate")
        value = self._value(node.this)
        if value.kind != "string" or not isinstance(node.expression, exp.Literal) or not node.expression.is_string:
            raise self._error(f"{node.sql()}: LIKE takes a column of strings and a 'pattern'")
        matches = pc.match_like(value.expression, node.expression.this)
        return _Value("boolean", ~matches if node.args.get("negate") else matches)

    def _is_null(self, node: Any) -> _Value:
        self._only(node, "this", "expression")
        if not isinstance(node.expression, exp.Null):
            raise self._error(f"{node.sql()} is not allowed; IS NULL and IS NOT NULL are")
        return _Value("boolean", self._value(node.this).expression.is_null())

    def _column(self, node: Any) -> _Value:
        name = self._only(node, "this").name
        if name not in self.schema.names:
            raise self._error(f"no column {name}: the columns are {', '.join(self.schema.names)}")
        self.columns.add(name)
        kind = self.schema.field(name).type
        is_float = pa.types.is_floating(kind)
        is_number = is_float or pa.types.is_integer(kind)
        value_kind = "number" if is_number else "boolean" if pa.types.is_boolean(kind) else "string"
        return _Value(value_kind, pc.field(name), is_float)

    def _literal(self, node: Any) -> _Value:
        try:
            constant = _constant(node)
            value_kind = "string" if isinstance(constant, str) else "number"
            return _Value(value_kind, pc.scalar(constant), isinstance(constant, float))
        except (ValueError, TypeError, OverflowError, pa.ArrowException):
            raise self._error(f"{node.sql()} is not a number that can be compared") from None

    def _alike(self, *nodes: Any) -> list[_Value]:
        """Compile nodes that are compared with the first of them."""
        values = [self._value(node) for node in nodes]
        for node, value in zip(nodes, values, strict=True):
            if value.kind != values[0].kind:
                raise self._error(
                    f"{nodes[0].sql()} is a {values[0].kind} and {node.sql()} a {value.kind}: they cannot be compared"
                )
        return [value.as_float() for value in values] if any(value.is_float for value in values) else values

    def _only(self, node: Any, *names: str) -> Any:
        """Return the node if it has no other fields than these: a later sqlglot may change its meaning by a new
        field."""
        more = [name for name, value in node.args.items() if value and name not in names]
        if more:
            raise self._error(f"{node.sql()} is not allowed ({node.key.upper()} with {', '.join(more)})")
        return node

    def _error(self, problem: str) -> UsageError:
        return UsageError(f"--where {_shown(self.where)}: {problem[:300]}. Allowed are {ALLOWED}")


def _constant(node: Any) -> str | int | float | bool:
    """Return the value of a literal."""
    if isinstance(node, exp.Boolean):
        return bool(node.this)
    if isinstance(node, exp.Neg):
        inner = _constant(node.this)
        if isinstance(inner, str | bool):
            raise ValueError(node.sql())
        return -inner
    if not isinstance(node, exp.Literal):
        raise ValueError(node.sql())
    text = str(node.this)
    if node.is_string:
        return text
    return int(text) if re.fullmatch(r"\d+", text) else float(text)
