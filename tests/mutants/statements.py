"""Find the product's SQL statements in its source, and the views and functions of its schema.

Each has its place in the file, so that it can be replaced.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pglast

from tests.mutants.mutate import Mutant, Style, mutants, numbered, rewritten
from tests.mutants.routines import is_routine, routine_mutants, routine_rewritten

ROOT = Path(__file__).parents[2]
_FOLDERS = ("shared", "dispatcher", "worker", "ops")
# Beginnings of statements, which are compared with those of others.
_NO_STATEMENTS = frozenset({"_INSERTS_RUN"})
_VERSIONS = Path("shared/schema/migrations/versions")
_DEFINED = (
    re.compile(r"(?ms)^(?P<head>CREATE OR REPLACE VIEW orcheo_dispatch\.(?P<name>\w+) AS\n)(?P<text>.*?)(?P<tail>;)$"),
    re.compile(
        r"(?ms)^(?P<head>CREATE OR REPLACE FUNCTION orcheo_dispatch\.(?P<name>\w+)\((?:(?!\$\$).)*?LANGUAGE sql"
        r"(?:(?!\$\$).)*?\$\$)(?P<text>.*?)(?P<tail>\$\$[^;]*;)$"
    ),
    re.compile(
        r"(?ms)^(?P<head>)(?P<text>CREATE OR REPLACE FUNCTION orcheo_dispatch\.(?P<name>\w+)\((?:(?!\$\$).)*?"
        r"LANGUAGE plpgsql(?:(?!\$\$).)*?\$\$(?:(?!\$\$).)*\$\$)(?P<tail>;)$"
    ),
)
"""Views, functions in SQL and functions in PL/pgSQL."""
_TRIGGER = re.compile(
    r"CREATE TRIGGER (?:(?!CREATE).)*? ON (?:orcheo_dispatch\.)?(\w+)[^;]*?FUNCTION orcheo_dispatch\.(\w+)\(", re.DOTALL
)
_SQL = re.compile(
    r"\s*(--[^\n]*\n\s*)*(WITH|SELECT|INSERT|UPDATE|DELETE|CREATE OR REPLACE (FUNCTION|TRIGGER)|CREATE INDEX)\s"
)


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement in `path`, between the characters `start` and `end`; its name is like `CLAIM` or `_PARTS.steps`."""

    name: str
    path: Path
    start: int
    end: int
    text: str
    style: Style

    @property
    def module(self) -> str:
        """Return the name under which the product's module is imported."""
        return _module(self.path)

    @property
    def key(self) -> str:
        """Return the module and the name, such as `shared.ledger.statements.claim.CLAIM`."""
        return f"{'.'.join(self.path.with_suffix('').parts)}.{self.name}"

    @property
    def digest(self) -> str:
        """Return what changes when the statement does; comments, white space and names of parameters do not count."""
        plain, _ = numbered(self.text, self.style)
        return hashlib.sha256(str(pglast.stream.RawStream()(plain)).encode()).hexdigest()[:12]

    @property
    def rewritten(self) -> str:
        """Return the statement as its mutants are written, without a change."""
        return routine_rewritten(self.text) if is_routine(self.text) else rewritten(self.text, self.style)

    def mutants(self) -> list[Mutant]:
        """Return its mutants."""
        return routine_mutants(self.text) if is_routine(self.text) else mutants(self.text, self.style)

    def source_with(self, text: str) -> str:
        """Return the source of its module with another text in its place."""
        source = (ROOT / self.path).read_text(encoding="utf-8")
        return source[: self.start] + self.literal(text) + source[self.end :]

    def literal(self, text: str) -> str:
        """Return a text as it stands in the file."""
        return repr(text)


@dataclass(frozen=True, slots=True)
class Definition(Statement):
    """A view or a function of the schema, where `text` stands between `head` and `tail` of what creates it.

    The text is the query; of a function in PL/pgSQL it is everything.
    """

    head: str
    tail: str
    readers: frozenset[str]
    """Its name, those of the views and functions that read it, and those of the tables whose triggers execute it."""

    def literal(self, text: str) -> str:
        """Return a query as it stands in the file."""
        return text

    def created_with(self, text: str) -> str:
        """Return the statement that creates or replaces it, with this query."""
        return self.head + text + self.tail


def statements() -> dict[str, Statement]:
    """Return every statement of the product by its key, in the order of the files; those of the schema last."""
    paths = sorted(
        path for folder in _FOLDERS for path in (ROOT / folder).rglob("*.py") if "migrations" not in path.parts
    )
    found = [*(each for path in paths for each in _of_module(path)), *_of_schema()]
    return {each.key: each for each in found}


def _of_schema() -> list[Definition]:
    # What several files define is created last by those that each `migrate` executes.
    paths = [*sorted((ROOT / _VERSIONS).glob("*.sql")), *sorted((ROOT / _VERSIONS.parents[1]).glob("*.sql"))]
    sources = {path: path.read_text(encoding="utf-8") for path in paths}
    last = {
        match["name"]: (path, match)
        for path, source in sources.items()
        for kind in _DEFINED
        for match in kind.finditer(source)
    }
    queries = {name: match["text"] for name, (_, match) in last.items()}
    triggers = [match.groups() for source in sources.values() for match in _TRIGGER.finditer(source)]
    return [
        Definition(
            *(name, path.relative_to(ROOT), *match.span("text"), match["text"], Style.PLAIN),
            *(match["head"], match["tail"]),
            _readers(name, queries) | {table for table, function in triggers if function == name},
        )
        for name, (path, match) in last.items()
    ]


def _readers(name: str, queries: dict[str, str]) -> frozenset[str]:
    found, new = {name}, {name}
    while new:
        new = {each for each, query in queries.items() if any(_reads(query, other) for other in new)} - found
        found |= new
    return frozenset(found)


def _reads(query: str, name: str) -> bool:
    return re.search(rf"\borcheo_dispatch\.{name}\b", query) is not None


def _of_module(path: Path) -> Iterator[Statement]:
    source = path.read_text(encoding="utf-8")
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))

    def at(line: int, column: int) -> int:
        start = lines[line - 1]
        # The syntax tree counts bytes.
        return start + len(source[start : lines[line]].encode()[:column].decode())

    for name, node, text, style in _texts(ast.parse(source), path):
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start, end = at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)
        yield Statement(name, path.relative_to(ROOT), start, end, text, style)


type _Text = tuple[str, ast.Constant | ast.JoinedStr, str, Style]


def _texts(tree: ast.Module, path: Path) -> Iterator[_Text]:
    for statement in tree.body:
        match statement:
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=ast.Call(func=ast.Name(id="text"), args=[ast.Constant(value=str(value)) as node]),
            ):
                yield name, node, value, Style.SQLALCHEMY
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(value)) as node) if (
                _is_sql(value) and name not in _NO_STATEMENTS
            ):
                yield name, node, value, _style(value)
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=ast.JoinedStr(values=[ast.Constant(value=str(beginning)), *_]) as node,
            ) if _is_sql(beginning):
                # Only the module knows what the names in it stand for.
                yield name, node, vars(importlib.import_module(_module(path.relative_to(ROOT))))[name], Style.PLAIN
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict(keys=keys, values=values)):
                for key, each in zip(keys, values, strict=True):
                    if isinstance(key, ast.Constant) and isinstance(each, ast.Constant) and _is_sql(str(each.value)):
                        yield f"{name}.{key.value!s}", each, str(each.value), Style.PSYCOPG


def _module(path: Path) -> str:
    return ".".join(("orcheo_dispatch", *path.with_suffix("").parts)).removesuffix(".__init__")


def _style(text: str) -> Style:
    _, parameters = numbered(text, Style.SQLALCHEMY)
    return Style.SQLALCHEMY if parameters else Style.PSYCOPG


def _is_sql(text: str) -> bool:
    return bool(_SQL.match(text)) and "{" not in text.replace("'{}'", "")
