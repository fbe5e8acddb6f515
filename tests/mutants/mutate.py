"""Make the mutants of one statement, with Postgres's own parser (pglast)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any

from pglast import ast, parse_sql
from pglast.enums import BoolExprType
from pglast.stream import RawStream

_CONDITIONS = ("whereClause", "quals", "havingClause", "agg_filter", "whenClause")
_NUMBERED = re.compile(r"\$(\d+)")


class Style(StrEnum):
    """How a statement writes its parameters."""

    SQLALCHEMY = ":name"
    PSYCOPG = "%(name)s"
    PLAIN = "$1"


_PARAMETER = {
    # As SQLAlchemy finds them.
    Style.SQLALCHEMY: re.compile(r"(?<![:\w\\]):(\w+)(?!:)"),
    Style.PSYCOPG: re.compile(r"%\(\w+\)[sbt]|%s"),
    Style.PLAIN: re.compile(r"(?!)"),
}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A statement with one change. `change` is unique among the mutants of a statement."""

    change: str
    text: str


def numbered(text: str, style: Style) -> tuple[str, list[str]]:
    """Return the statement with $1, $2 and so on as parameters, and what stood in their places."""
    parameters: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[0] == "%s" or match[0] not in parameters:
            parameters.append(match[0])
        return f"${len(parameters) if match[0] == '%s' else parameters.index(match[0]) + 1}"

    return _PARAMETER[style].sub(number, text), parameters


def mutants(text: str, style: Style = Style.SQLALCHEMY) -> list[Mutant]:
    """Return all mutants of a statement. Raises `pglast.parser.ParseError` if Postgres cannot parse it."""
    plain, parameters = numbered(text, style)
    found: list[Mutant] = []
    seen: Counter[str] = Counter()
    for number in range(len(list(_changes(parse_sql(plain))))):
        # Parsed again for each, because a change is made in place.
        tree = parse_sql(plain)
        describe, make = next(islice(_changes(tree), number, None))
        change = _named(describe(), parameters)
        make()
        seen[change] += 1
        name = change if seen[change] == 1 else f"{change} ({seen[change]})"
        found.append(Mutant(name, _named(RawStream()(tree), parameters)))
    return found


def rewritten(text: str, style: Style = Style.SQLALCHEMY) -> str:
    """Return the statement as mutants are written, without a change."""
    plain, parameters = numbered(text, style)
    return _named(RawStream()(parse_sql(plain)), parameters)


def _named(text: str, parameters: list[str]) -> str:
    return _NUMBERED.sub(lambda match: parameters[int(match[1]) - 1], text) if parameters else text


type _Change = tuple[Callable[[], str], Callable[[], None]]
type _Place = Callable[[Any], None]


def _changes(tree: tuple[ast.RawStmt, ...]) -> Iterator[_Change]:
    for statement in tree:
        for node, put, field in _walk(statement.stmt, lambda _: None, ""):
            if field in _CONDITIONS and not _is(node, BoolExprType.AND_EXPR):
                yield from _of_condition(node, put, field)
            if _is(node, BoolExprType.AND_EXPR):
                yield from _of_conjuncts(node, put)
            elif _is(node, BoolExprType.OR_EXPR):
                for index, disjunct in enumerate(node.args):
                    yield _says("drop from OR", disjunct), _without(node, put, index)
            elif isinstance(node, ast.CaseExpr):
                yield from _of_case(node, put)


def _walk(node: Any, put: _Place, field: str) -> Iterator[tuple[Any, _Place, str]]:
    """Yield each node with what replaces it and the name of its field."""
    if isinstance(node, tuple):
        for index, each in enumerate(node):

            def put_one(new: Any, index: int = index) -> None:
                put((*node[:index], new, *node[index + 1 :]))

            yield from _walk(each, put_one, field)
    elif isinstance(node, ast.Node):
        yield node, put, field
        for name in node:

            def put_field(new: Any, name: str = name) -> None:
                setattr(node, name, new)

            yield from _walk(getattr(node, name), put_field, name)


def _of_condition(node: ast.Node, put: _Place, field: str) -> Iterator[_Change]:
    nothing = _constant(True) if field == "quals" else None
    if not (isinstance(node, ast.A_Const) and field == "quals"):
        yield _says("drop", node), lambda: put(nothing)
    yield _says("negate", node), lambda: put(_negated(node))


def _of_conjuncts(node: Any, put: _Place) -> Iterator[_Change]:
    for index, conjunct in enumerate(node.args):

        def negate(index: int = index) -> None:
            node.args = (*node.args[:index], _negated(node.args[index]), *node.args[index + 1 :])

        yield _says("drop", conjunct), _without(node, put, index)
        yield _says("negate", conjunct), negate


def _of_case(node: Any, put: _Place) -> Iterator[_Change]:
    for index, arm in enumerate(node.args):

        def drop(index: int = index) -> None:
            if len(node.args) == 1:
                put(node.defresult or _null())
            else:
                node.args = (*node.args[:index], *node.args[index + 1 :])

        def negate(arm: ast.CaseWhen = arm) -> None:
            arm.expr = _negated(arm.expr)

        yield _says_arm("drop", arm), drop
        if node.arg is None:
            yield _says_arm("negate", arm), negate
    if node.defresult is not None and not (isinstance(node.defresult, ast.A_Const) and node.defresult.isnull):

        def drop_else() -> None:
            node.defresult = None

        yield _says("drop ELSE", node.defresult), drop_else


def _without(node: Any, put: _Place, index: int) -> Callable[[], None]:
    def drop() -> None:
        rest = (*node.args[:index], *node.args[index + 1 :])
        if len(rest) == 1:
            put(rest[0])
        else:
            node.args = rest

    return drop


def _is(node: Any, operator: BoolExprType) -> bool:
    return isinstance(node, ast.BoolExpr) and node.boolop == operator


def _negated(node: Any) -> Any:
    if _is(node, BoolExprType.NOT_EXPR):
        return node.args[0]
    return ast.BoolExpr(boolop=BoolExprType.NOT_EXPR, args=(node,))


def _constant(value: bool) -> ast.A_Const:
    return ast.A_Const(isnull=False, val=ast.Boolean(boolval=value))


def _null() -> ast.A_Const:
    return ast.A_Const(isnull=True)


def _says(what: str, node: ast.Node) -> Callable[[], str]:
    return lambda: f"{what}: {_text(node)}"


def _says_arm(what: str, arm: ast.CaseWhen) -> Callable[[], str]:
    return lambda: f"{what} arm: WHEN {_text(arm.expr)} THEN {_text(arm.result)}"


def _text(node: Any) -> str:
    return str(RawStream()(node))
