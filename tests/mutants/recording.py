"""Find out which statements a test executes, from the log of its Postgres: whatever process has sent them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psycopg

from tests.mutants.statements import Definition, Statement, statements

_MARK = "\x01"
_SENT = re.compile(r"\A\S*LOG:  (?:execute [^:\n]*|statement): ")
_PARAMETER = re.compile(r"\$\d+(?:::\w+)?")
# In the log, continued lines begin with a tab.
_BLANK = re.compile(r"\s+")


class Recording:
    """The log of a server of our own, from where the last look at it ended."""

    def __init__(self, admin: psycopg.Connection[Any]) -> None:
        self._admin = admin
        row = admin.execute("SHOW data_directory").fetchone()
        assert row is not None
        self._log = Path(row[0]).parent / "postgresql.log"
        self._needles = {key: _needle(each) for key, each in statements().items()}
        self._known: dict[str, frozenset[str]] = {}
        self._offset = 0

    def start(self) -> None:
        """Log every statement from now on."""
        self._set("log_statement", "all")
        self._set("log_line_prefix", _MARK)
        self._reload()
        self._offset = self._log.stat().st_size

    def stop(self) -> None:
        """Log errors alone."""
        self._set("log_statement", "none")
        self._reload()

    def executed(self) -> set[str]:
        """Return the keys of the statements in the log since the last call."""
        with self._log.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        self._offset += len(new)
        found: set[str] = set()
        for entry in new.decode(errors="replace").split(_MARK):
            if match := _SENT.match(entry):
                found |= self._keys_of(_squeezed(entry[match.end() :]))
        return found

    def _keys_of(self, sent: str) -> frozenset[str]:
        if sent not in self._known:
            self._known[sent] = frozenset(key for key, needle in self._needles.items() if needle.search(sent))
        return self._known[sent]

    def _set(self, name: str, value: str) -> None:
        self._admin.execute(psycopg.sql.SQL("ALTER SYSTEM SET {} = {}").format(psycopg.sql.Identifier(name), value))

    def _reload(self) -> None:
        self._admin.execute("SELECT pg_reload_conf()")


def _needle(statement: Statement) -> re.Pattern[str]:
    """Return what a statement contains that is sent: the text, or the name of a view or function that reads it."""
    from tests.mutants.mutate import numbered

    if isinstance(statement, Definition):
        return re.compile(rf"\borcheo_dispatch\.(?:{'|'.join(statement.readers)})\b")
    return re.compile(re.escape(_squeezed(numbered(statement.text, statement.style)[0])))


def _squeezed(sql: str) -> str:
    return _BLANK.sub(" ", _PARAMETER.sub("$", sql)).strip()
