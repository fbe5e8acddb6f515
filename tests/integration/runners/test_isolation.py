"""What workers and operators know of workflows that harm other runs: in the ledger, and in each worker."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from loguru import logger

from orcheo_dispatch.ops.runs.author import login_name
from orcheo_dispatch.shared.ledger.isolations import Isolations
from orcheo_dispatch.shared.ledger.operators.operations import Author, Interface, list_operations
from orcheo_dispatch.shared.ledger.runs import Run
from orcheo_dispatch.worker.isolation import Isolation
from tests.support.database.databases import Database
from tests.support.database.roles import Kind, Roles
from tests.support.database.runs import (
    VERSION_ID,
    WORKFLOW_ID,
    WORKSPACE_ID,
    everything,
    execute,
    insert_runs,
    one,
    settings_for,
    store_of,
)
from tests.support.processes.processes import Stack, until

ADA = Author("ada", Interface.COMMAND, why="noisy")
OTHER_VERSION = "0f5d8a70-2f0e-4d43-8b7c-3a1a52f5b002"
_VERSION = """
INSERT INTO workflow_versions (id, workflow_id, version, payload, created_at, updated_at)
VALUES (%s, %s, %s, '{}', now(), now())
"""
# Looks of a worker that wait for a lock, by when they began.
_WAITING = """
SELECT query_start AS at FROM pg_stat_activity
 WHERE datname = current_database() AND application_name = 'orcheo-dispatch isolation' AND wait_event_type = 'Lock'
"""
_AGE = "UPDATE orcheo_dispatch.isolation SET since = since - %(by)s, until = until - %(by)s"


def _run(version_id: str = VERSION_ID, workflow_id: str = WORKFLOW_ID, *, suspect: bool = False) -> Run:
    return Run("r", 1, 1, workflow_id, version_id, WORKSPACE_ID, "webhook", {}, {}, suspect=suspect)


@contextmanager
def _isolations(database: Database) -> Iterator[Isolations]:
    with store_of(database) as (_, engine):
        yield Isolations(engine)


@contextmanager
def _worker(database: Database, isolation: str = "adaptive") -> Iterator[Isolation]:
    """Yield what one worker knows, as long as it lives."""
    worker = Isolation(settings_for(database, isolation=isolation))
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def _age(database: Database, by: timedelta) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(_AGE, {"by": by})


def _rows(database: Database) -> list[dict[str, Any]]:
    return everything(database, "SELECT * FROM orcheo_dispatch.isolation ORDER BY workflow_version_id")


def _shown(database: Database) -> list[dict[str, Any]]:
    return everything(database, "SELECT * FROM orcheo_dispatch.isolated_workflows")


def test_harm_isolates_a_version_for_a_day_and_is_counted(database: Database) -> None:
    with _isolations(database) as isolations:
        isolations.record_harm(WORKFLOW_ID, VERSION_ID, "ended its runner", times=1)
        (first,) = isolations.held()
        _age(database, timedelta(hours=23))
        isolations.record_harm(WORKFLOW_ID, VERSION_ID, "held its event loop", times=2)
        (again,) = isolations.held()
        assert (again.by, again.reason, again.times) == ("worker", "held its event loop", 3)
        assert first.until is not None
        assert again.until is not None
        assert again.until > first.until
        assert again.since == first.since - timedelta(hours=23)
        _age(database, timedelta(hours=25))
        assert isolations.held() == []
        assert _shown(database) == []
        isolations.record_harm(WORKFLOW_ID, VERSION_ID, "ended its runner", times=1)
        (anew,) = isolations.held()
        assert (anew.times, anew.since > first.since) == (4, True)


@pytest.mark.parametrize("days", [None, 3])
def test_harm_leaves_what_an_operator_decided_for_longer(database: Database, days: int | None) -> None:
    with _isolations(database) as isolations:
        seconds = None if days is None else days * 86_400.0
        decided = isolations.isolate(WORKFLOW_ID, VERSION_ID, ADA, seconds=seconds)
        isolations.record_harm(WORKFLOW_ID, VERSION_ID, "ended its runner", times=1)
        (held,) = isolations.held()
        assert (held.reason, held.by, held.until, held.since) == ("noisy", "ada", decided.until, decided.since)
        assert (held.times, held.last_seen_at is not None) == (1, True)


def test_harm_outlasts_what_an_operator_decided_for_an_hour(database: Database) -> None:
    with _isolations(database) as isolations:
        isolations.isolate(WORKFLOW_ID, VERSION_ID, ADA, seconds=3600)
        isolations.record_harm(WORKFLOW_ID, VERSION_ID, "ended its runner", times=1)
        _age(database, timedelta(hours=2))
        (held,) = isolations.held()
        assert (held.reason, held.by) == ("ended its runner", "worker")


def test_what_expired_a_month_ago_is_forgotten(database: Database) -> None:
    with _isolations(database) as isolations:
        isolations.record_harm(WORKFLOW_ID, VERSION_ID, "ended its runner", times=1)
        isolations.isolate(WORKFLOW_ID, None, ADA, seconds=None)
        _age(database, timedelta(days=30))
        isolations.prune()
        assert len(_rows(database)) == 2
        _age(database, timedelta(days=2))
        isolations.prune()
        assert [row["by"] for row in _rows(database)] == ["ada"]


def test_conviction_counts_at_once_and_then_in_every_worker(database: Database) -> None:
    with _worker(database) as first, _worker(database) as second:
        assert not first.is_isolated(_run())
        for _ in range(3):
            first.convict(_run(), "ended its runner")
        assert first.is_isolated(_run())
        assert not first.is_isolated(_run(OTHER_VERSION))
        until(lambda: second.is_isolated(_run()), what="what the other worker convicted")
        assert not second.is_isolated(_run(OTHER_VERSION))
        until(lambda: one(database, "SELECT times FROM orcheo_dispatch.isolation")["times"] == 3, what="all three")
        # A worker that starts later knows from its first run on.
        with _worker(database) as third:
            assert third.is_isolated(_run())


def test_isolation_ends_in_every_worker_when_it_expires_or_is_cleared(database: Database) -> None:
    with _worker(database) as worker, _isolations(database) as isolations:
        worker.convict(_run(), "ended its runner")
        until(lambda: _rows(database), what="the conviction")
        _age(database, timedelta(hours=25))
        until(lambda: not worker.is_isolated(_run()), what="its end")
        worker.convict(_run(), "ended its runner")
        until(lambda: _shown(database), what="the second conviction")
        isolations.isolate(WORKFLOW_ID, None, ADA, seconds=None)
        until(lambda: worker.is_isolated(_run(OTHER_VERSION)), what="all versions")
        assert len(isolations.clear(WORKFLOW_ID, None, ADA)) == 2
        until(lambda: not worker.is_isolated(_run()), what="its end by hand")


@pytest.mark.parametrize(("mode", "isolated"), [("shared", False), ("process", True)])
def test_other_modes_neither_ask_nor_tell_the_ledger(database: Database, mode: str, isolated: bool) -> None:
    with _worker(database, mode) as worker:
        worker.convict(_run(), "ended its runner")
        assert [worker.is_isolated(run) for run in (_run(), _run(suspect=True))] == [isolated, True]
    assert _rows(database) == []


def test_suspect_is_isolated_and_its_version_is_not(database: Database) -> None:
    with _worker(database) as worker:
        assert worker.is_isolated(_run(suspect=True))
        assert not worker.is_isolated(_run())


def test_locked_table_makes_nobody_wait_and_is_said_once(database: Database) -> None:
    said: list[str] = []

    def times(event: str) -> int:
        return sum(event in line for line in said)

    sink = logger.add(said.append, level="INFO")
    try:
        with _worker(database) as worker, psycopg.connect(database.dsn) as holder:
            holder.execute("LOCK TABLE orcheo_dispatch.isolation IN ACCESS EXCLUSIVE MODE")
            began = time.monotonic()
            for number in range(200):
                worker.convict(_run(f"version-{number % 3}"), "ended its runner")
                assert worker.is_isolated(_run(f"version-{number % 3}"))
            assert time.monotonic() - began < 1
            until(lambda: times("isolation_not_synchronized"), what="a line")
            waited = [row["at"] for row in everything(database, _WAITING)]
            until(lambda: any(row["at"] not in waited for row in everything(database, _WAITING)), what="another look")
            waited = [row["at"] for row in everything(database, _WAITING)]
            until(lambda: any(row["at"] not in waited for row in everything(database, _WAITING)), what="a third one")
            assert times("isolation_not_synchronized") == 1
            assert worker.is_isolated(_run("version-0"))
            holder.rollback()
            until(lambda: times("isolation_synchronized"), what="that it is well again")
            until(lambda: sum(row["times"] for row in _rows(database)) == 200, what="all that was seen")
        assert [times("workflow_isolated"), times("isolation_synchronized")] == [3, 1]
    finally:
        logger.remove(sink)


def test_row_that_somebody_holds_delays_that_row_alone(database: Database) -> None:
    with _isolations(database) as isolations:
        isolations.record_harm(WORKFLOW_ID, VERSION_ID, "ended its runner", times=1)
    with _worker(database) as worker, psycopg.connect(database.dsn) as holder:
        holder.execute("SELECT FROM orcheo_dispatch.isolation FOR UPDATE")
        worker.convict(_run(), "ended its runner")
        worker.convict(_run(OTHER_VERSION), "ended its runner")
        until(lambda: len(_shown(database)) == 2, what="the other version")
        holder.rollback()
        until(lambda: sorted(row["times"] for row in _shown(database)) == [1, 2], what="the one that was held")


def test_row_that_postgres_refuses_is_isolated_all_the_same_and_holds_up_no_other(database: Database) -> None:
    execute(
        database,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;"
        f"CREATE TRIGGER refuse BEFORE INSERT ON orcheo_dispatch.isolation FOR EACH ROW"
        f" WHEN (NEW.workflow_version_id = '{VERSION_ID}') EXECUTE FUNCTION refuse()",
    )
    with _worker(database) as worker:
        worker.convict(_run(), "ended its runner")
        worker.convict(_run(OTHER_VERSION), "ended its runner")
        until(lambda: _shown(database), what="the other version")
        assert worker.is_isolated(_run())


def test_worker_without_the_rights_goes_on_with_what_it_has_seen(database: Database, roles: Roles) -> None:
    execute(database, f"REVOKE ALL ON orcheo_dispatch.isolation FROM {roles.group(Kind.WORKER)}")
    with _worker(database.seen_by(Kind.WORKER)) as worker:
        worker.convict(_run(), "ended its runner")
        assert worker.is_isolated(_run())
    assert _rows(database) == []


def _ran(stack: Stack, *arguments: str, expect: int = 0) -> str:
    with stack.command(*arguments) as process:
        code = process.exit_code()
        process.finish()
        assert code == expect, process.log
        assert "Traceback" not in process.log
        return process.log


def test_operator_isolates_and_clears_by_the_command(database: Database, stack: Stack) -> None:
    insert_runs(database)
    for number, version in enumerate((VERSION_ID, OTHER_VERSION), start=1):
        execute(database, _VERSION, version, WORKFLOW_ID, number)
    with _worker(database) as worker:
        assert "all versions: isolated until cleared" in _ran(stack, "isolate", WORKFLOW_ID[:8], "--why", "noisy")
        until(lambda: worker.is_isolated(_run()), what="what the operator decided")
        (found,) = json.loads(_ran(stack, "isolate", WORKFLOW_ID, "--version", "2", "--for", "3d", "--json"))
        assert (found["workflow_version_id"], found["by"], found["times"]) == (OTHER_VERSION, login_name(), 0)
        rows = {row["workflow_version_id"]: row for row in _shown(database)}
        assert rows[None]["reason"] == "noisy"
        assert rows[OTHER_VERSION]["until"] - rows[OTHER_VERSION]["since"] == timedelta(days=3)
        status = json.loads(_ran(stack, "status", "--json"))
        assert (status["isolated"], len(status["isolated_workflows"])) == (2, 2)
        assert "noisy" in _ran(stack, "status")
        cleared = json.loads(_ran(stack, "isolate", WORKFLOW_ID, "--clear", "--json"))
        assert [each["workflow_version_id"] for each in cleared] == [None, OTHER_VERSION]
        until(lambda: not worker.is_isolated(_run()), what="that it is cleared")
    assert "is not isolated" in _ran(stack, "isolate", WORKFLOW_ID, "--clear")


def test_what_cannot_be_isolated_is_one_line(database: Database, stack: Stack) -> None:
    insert_runs(database)
    for expect, said, arguments in (
        (1, "there is no workflow 'nobody'", ("nobody",)),
        (1, "there is no version '7'", (WORKFLOW_ID, "--version", "7")),
        (2, "--for='0s'", (WORKFLOW_ID, "--for", "0s")),
        (2, "--for='tomorrow'", (WORKFLOW_ID, "--for", "tomorrow")),
        (2, "--clear cannot be combined", (WORKFLOW_ID, "--clear", "--for", "3d")),
    ):
        log = _ran(stack, "isolate", *arguments, expect=expect)
        assert said in log
        assert len(log.strip().splitlines()) == 1
    assert _rows(database) == []


def test_isolating_and_clearing_are_recorded(database: Database) -> None:
    with store_of(database) as (_, engine):
        Isolations(engine).isolate(WORKFLOW_ID, VERSION_ID, ADA, seconds=60)
        Isolations(engine).clear(WORKFLOW_ID, None, ADA)
        cleared, isolated = list_operations(engine, limit=10)
    assert (isolated.action, isolated.by, isolated.why, isolated.workflow_id) == (
        "isolate",
        "ada",
        "noisy",
        WORKFLOW_ID,
    )
    assert isolated.details == {"version_id": VERSION_ID, "seconds": 60}
    assert (cleared.action, cleared.changed) == ("isolate clear", 1)
