"""A plugin of pytest: one session that collects the tests once and runs them again and again, each time in a fork.

Servers and template databases are started before the first fork, so that a test costs no more than itself. Commands are
read from one pipe and answered on another, a line of JSON each.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg
import pytest

from tests.mutants.in_force import SourceCopy, put_in_force
from tests.mutants.mutate import numbered
from tests.mutants.recording import Recording
from tests.mutants.statements import Definition, Statement, statements
from tests.support.database.databases import cloned, close

PIPES = "TEST_MUTANTS_PIPES"
"""Number of the pipe to read commands from, of the one to answer on, and the folder of the copy of the source."""
_MORE_SECONDS = 30.0


class Session:
    """Answers commands for as long as the pipe is open."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self._items = {item.nodeid: item for item in session.items if isinstance(item, pytest.Function)}
        commands, answers, folder = os.environ[PIPES].split(":", 2)
        self._commands = os.fdopen(int(commands), "r", encoding="utf-8")
        self._answers = os.fdopen(int(answers), "w", encoding="utf-8")
        self._source = SourceCopy(Path(folder))
        self._statements = statements()
        self._last = next(item for item in session.items if "tests/plans/" in item.nodeid)
        self._reports: list[pytest.TestReport] = []
        self._fixtures: dict[str, Any] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        """Keep the fixtures of the session."""
        value = yield
        if fixturedef.scope == "session":
            self._fixtures[fixturedef.argname] = value
        if fixturedef.argname == "admin":
            # Forks share the connection: none may know of prepared statements that another has made.
            value.prepare_threshold = None
        return value

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what became of a test."""
        self._reports.append(report)

    def serve(self) -> None:
        """Start the servers and answer commands."""
        first = next(item for item in self._items.values() if _is_plain(item))
        self._run_one(first, self._last)
        self._tell({"ready": [[nodeid, "stack" in item.fixturenames] for nodeid, item in self._items.items()]})
        recording = Recording(self._fixtures["admin"])
        for line in self._commands:
            command = json.loads(line)
            match command.pop("do"):
                case "prepare":
                    self._tell({"errors": self._prepare(**command)})
                case "record":
                    recording.start()
                    answer = self._run(**command)
                    recording.stop()
                    self._tell({**answer, "executed": sorted(recording.executed())})
                case "run":
                    self._tell(self._run(**command))

    def _prepare(self, statement: str, texts: list[str]) -> list[str | None]:
        """Return what Postgres says of each text, None if it can be executed; nothing can be said of a part of one."""
        each = self._statements[statement]
        with (
            cloned(self._fixtures["admin"], self._fixtures["servers"], self._fixtures["template"].name) as database,
            psycopg.connect(database.dsn, autocommit=True) as connection,
        ):
            if _error(connection, each, each.text):
                return [None for _ in texts]
            return [_error(connection, each, text) for text in texts]

    def _run(
        self, tests: list[str], limits: list[float], statement: str | None = None, mutant: str | None = None
    ) -> dict[str, Any]:
        """Run the tests in a fork until one fails; return it, why, and how long each took (seconds)."""
        each = self._statements[statement] if statement else None
        with self._changed(each, mutant) if each and mutant is not None else nullcontext():
            reader, writer = os.pipe()
            if not (pid := os.fork()):
                os.close(reader)
                os.setpgid(0, 0)
                with os.fdopen(writer, "w", encoding="utf-8") as answer:
                    try:
                        if each and mutant is not None:
                            self._source.use()
                            put_in_force(each, mutant)
                        answer.write(json.dumps(self._in_fork(tests, limits)))
                    except BaseException:
                        answer.write(json.dumps({"died": traceback.format_exc()[-2000:]}))
                os._exit(0)
            os.close(writer)
            with os.fdopen(reader, "rb") as answers:
                told = _read(answers.fileno(), sum(limits) + _MORE_SECONDS)
            _end(pid)
        return json.loads(told) if told else {"died": "the process of the test ended or hung"}

    @contextmanager
    def _changed(self, statement: Statement, mutant: str) -> Iterator[None]:
        """Have the copy of the source contain the mutant, and the template database if it is of the schema."""
        with self._source.changed(statement, mutant):
            if not isinstance(statement, Definition):
                yield
                return
            self._create(statement.created_with(mutant))
            try:
                yield
            finally:
                self._create(statement.created_with(statement.text))

    def _create(self, definition: str) -> None:
        admin, template = self._fixtures["admin"], self._fixtures["template"]
        name = psycopg.sql.Identifier(template.name)
        admin.execute(psycopg.sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))
        with psycopg.connect(template.dsn, autocommit=True) as connection:
            connection.execute(definition.encode())
        close(admin, template)

    def _in_fork(self, tests: list[str], limits: list[float]) -> dict[str, Any]:
        took: dict[str, float] = {}
        for index, (test, limit) in enumerate(zip(tests, limits, strict=True)):
            following = self._items[tests[index + 1]] if index + 1 < len(tests) else self._last
            self._reports.clear()
            started = time.monotonic()
            with _at_most(limit):
                self._run_one(self._items[test], following)
            took[test] = round(time.monotonic() - started, 3)
            if failed := [report for report in self._reports if report.failed]:
                return {"took": took, "failed": test, "why": _why(failed[0])}
            if any(report.skipped for report in self._reports):
                return {"took": took, "skipped": test}
        return {"took": took}

    def _run_one(self, item: pytest.Item, following: pytest.Item) -> None:
        self._session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)

    def _tell(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


def pytest_runtestloop(session: pytest.Session) -> bool:
    """Answer commands in place of running the tests."""
    serving = Session(session)
    session.config.pluginmanager.register(serving)
    serving.serve()
    return True


def _is_plain(item: pytest.Function) -> bool:
    names = item.fixturenames
    return "tests/integration/" in item.nodeid and "database" in names and "stack" not in names


def _error(connection: psycopg.Connection[Any], statement: Statement, text: str) -> str | None:
    try:
        if isinstance(statement, Definition):
            with connection.transaction(force_rollback=True):
                connection.execute(statement.created_with(text).encode())
            return None
        connection.execute(f"PREPARE mutant AS {numbered(text, statement.style)[0]}".encode())
    except psycopg.Error as error:
        return str(error).splitlines()[0]
    connection.execute("DEALLOCATE mutant")
    return None


def _why(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else report.longreprtext)[:300]


def _read(pipe: int, seconds: float) -> bytes:
    """Return what is written to a pipe until it is closed, or nothing if that takes longer."""
    told, deadline = b"", time.monotonic() + seconds
    while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
        if not (more := os.read(pipe, 65_536)):
            return told
        told += more
    return b""


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def ring(_: int, frame: FrameType | None) -> None:
        # Again, should a test take the first for something that may happen.
        signal.setitimer(signal.ITIMER_REAL, 5)
        pytest.fail(f"over its limit of {seconds:g} s")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
