"""Find the product's SQL statements in its source, and the views and SQL functions of its schema.

Each has its place in the file, so that it can be replaced.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pglast

from tests.mutants.mutate import Mutant, Style, mutants, numbered, rewritten

ROOT = Path(__file__).parents[2]
_FOLDERS = ("shared", "dispatcher", "worker")
# Beginnings of statements, which are compared with those of others.
_NO_STATEMENTS = frozenset({"_INSERTS_RUN"})
_VERSIONS = Path("shared/schema/migrations/versions")
_VIEW = re.compile(r"(?ms)^(CREATE OR REPLACE VIEW orcheo_dispatch\.(\w+) AS\n)(.*?)(;)$")
_FUNCTION = re.compile(
    r"(?ms)^(CREATE OR REPLACE FUNCTION orcheo_dispatch\.(\w+)\((?:(?!\$\$).)*?LANGUAGE sql(?:(?!\$\$).)*?\$\$)"
    r"(.*?)(\$\$[^;]*;)$"
)
_SQL = re.compile(r"\s*(--[^\n]*\n\s*)*(WITH|SELECT|INSERT|UPDATE|DELETE)\s")


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
        return f"orcheo_dispatch.{'.'.join(self.path.with_suffix('').parts)}"

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
        return rewritten(self.text, self.style)

    def mutants(self) -> list[Mutant]:
        """Return its mutants."""
        return mutants(self.text, self.style)

    def source_with(self, text: str) -> str:
        """Return the source of its module with another text in its place."""
        source = (ROOT / self.path).read_text(encoding="utf-8")
        return source[: self.start] + self.literal(text) + source[self.end :]

    def literal(self, text: str) -> str:
        """Return a text as it stands in the file."""
        return repr(text)


@dataclass(frozen=True, slots=True)
class Definition(Statement):
    """A view or an SQL function of the schema: `text` is its query, between `head` and `tail` of what creates it."""

    head: str
    tail: str
    readers: frozenset[str]
    """Its name, and those of the views and functions that read it."""

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
    last = {
        match[2]: (path, match)
        for path in paths
        for kind in (_VIEW, _FUNCTION)
        for match in kind.finditer(path.read_text(encoding="utf-8"))
    }
    queries = {name: match[3] for name, (_, match) in last.items()}
    return [
        Definition(
            *(name, path.relative_to(ROOT), match.start(3), match.end(3), match[3], Style.PLAIN),
            *(match[1], match[4], _readers(name, queries)),
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

    for name, node, style in _texts(ast.parse(source)):
        assert isinstance(node.value, str)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start, end = at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)
        yield Statement(name, path.relative_to(ROOT), start, end, node.value, style)


def _texts(tree: ast.Module) -> Iterator[tuple[str, ast.Constant, Style]]:
    for statement in tree.body:
        match statement:
            case ast.Assign(
                targets=[ast.Name(id=name)], value=ast.Call(func=ast.Name(id="text"), args=[ast.Constant() as node])
            ):
                yield name, node, Style.SQLALCHEMY
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant() as node) if (
                _is_sql(node) and name not in _NO_STATEMENTS
            ):
                yield name, node, _style(node)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict(keys=keys, values=values)):
                for key, value in zip(keys, values, strict=True):
                    if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and _is_sql(value):
                        yield f"{name}.{key.value!s}", value, Style.PSYCOPG


def _style(node: ast.Constant) -> Style:
    _, parameters = numbered(str(node.value), Style.SQLALCHEMY)
    return Style.SQLALCHEMY if parameters else Style.PSYCOPG


def _is_sql(node: ast.Constant) -> bool:
    return isinstance(node.value, str) and bool(_SQL.match(node.value)) and "{" not in node.value.replace("'{}'", "")
