"""Mutants of PL/pgSQL functions: of the statements in their body, of dynamic SQL, and of the conditions of IF."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pglast import ast, parse_plpgsql, parse_sql

from tests.mutants.mutate import Mutant, Style, mutants, rewritten

_ROUTINE = re.compile(r"(?s)\s*CREATE (OR REPLACE )?FUNCTION(?:(?!\$\$).)*\bLANGUAGE plpgsql\b")
_STATEMENT, _EXPRESSION = 0, 2
"""How PL/pgSQL parses a text, by `parseMode`; greater numbers are assignments."""
_SELECT, _WHERE = "SELECT ", "SELECT WHERE "


@dataclass(frozen=True, slots=True)
class _Part:
    """The characters `start` to `end` of a function: `sql` is what they mean, `written` returns what stands for SQL."""

    start: int
    end: int
    sql: str
    written: Callable[[str], str]


def is_routine(text: str) -> bool:
    """Return whether this creates a PL/pgSQL function."""
    return _ROUTINE.match(text) is not None


def routine_mutants(create: str) -> list[Mutant]:
    """Return the mutants of a function, each as the statement that creates it. Raises `pglast.parser.ParseError`."""
    found: dict[str, Mutant] = {}
    for part in _parts(create):
        for mutant in mutants(part.sql, Style.PLAIN):
            change, number = mutant.change, 1
            while change in found:
                number += 1
                change = f"{mutant.change} ({number})"
            text = create[: part.start] + part.written(mutant.text) + create[part.end :]
            found[change] = Mutant(change, text)
    return [*found.values()]


def routine_rewritten(create: str) -> str:
    """Return a function as its mutants are written, without a change."""
    for part in reversed(_parts(create)):
        create = create[: part.start] + part.written(rewritten(part.sql, Style.PLAIN)) + create[part.end :]
    return create


def _parts(create: str) -> list[_Part]:
    """Return what may be changed, in the order of the text. Raises `ValueError` if a part is not found in it."""
    found: list[_Part] = []
    at = create.index("$$")
    for expression, is_condition in _expressions(parse_plpgsql(create)):
        query, mode = expression["query"], expression["parseMode"]
        if mode > _EXPRESSION:
            # What is assigned, without the variable.
            query = re.split(r":?=", query, maxsplit=1)[1].strip()
        match = _place(query).search(create, at)
        if match is None and not mutants(query if mode == _STATEMENT else _SELECT + query, Style.PLAIN):
            # PERFORM, which is a SELECT for PL/pgSQL.
            continue
        if match is None:
            raise ValueError(f"not found in the function: {query}")
        at = match.end()
        found.append(_part(match, query, mode, is_condition=is_condition))
    return found


def _part(match: re.Match[str], query: str, mode: int, *, is_condition: bool) -> _Part:
    if is_condition:
        return _Part(*match.span(), _WHERE + query, lambda sql: sql.removeprefix(_WHERE) if _WHERE in sql else "TRUE")
    if mode != _STATEMENT:
        if dynamic := _dynamic(query):
            return _Part(*match.span(), dynamic, _quoted)
        return _Part(*match.span(), _SELECT + query, lambda sql: sql.removeprefix(_SELECT))
    into = _into(match[0], query)
    return _Part(*match.span(), query, lambda sql: f"{sql} {into}".strip())


def _place(query: str) -> re.Pattern[str]:
    """Return where a query stands: PL/pgSQL gives it with blanks in place of INTO and its variable."""
    words = (re.escape(word) for word in query.split())
    return re.compile(r"\s+(?:INTO\s+\w+\s+)?".join(words))


def _into(text: str, query: str) -> str:
    words, without = text.split(), query.split()
    for index, word in enumerate(words):
        if word != (without[index] if index < len(without) else None):
            return " ".join(words[index : index + 2])
    return ""


def _dynamic(query: str) -> str | None:
    """Return the SQL that a constant contains, None if the expression is something else."""
    match parse_sql(_SELECT + query)[0].stmt:
        case ast.SelectStmt(targetList=[ast.ResTarget(val=ast.A_Const(val=ast.String(sval=str(sql))))]) if (
            sql.startswith(_SELECT)
        ):
            return sql
    return None


def _quoted(sql: str) -> str:
    return "'" + sql.replace("'", "''") + "'"


def _expressions(node: Any, field: str = "") -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield each expression, and whether it is a condition of IF."""
    if isinstance(node, list):
        for each in node:
            yield from _expressions(each, field)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name == "PLpgSQL_expr":
                yield value, field == "cond"
            else:
                yield from _expressions(value, field if name.startswith("PLpgSQL_") else name)
