"""The command: what it prints, its exit codes, and one line instead of a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedRedis
from orcheo_dispatch.shared.schema.revision import newest_revision
from tests.support.database.databases import Database
from tests.support.database.runs import WORKFLOW_ID, everything, execute, insert_runs
from tests.support.processes.processes import Stack


@pytest.fixture
def stack(database: Database, redis_url: str, tmp_path: Path) -> Stack:
    return Stack(database, redis_url, tmp_path / "side-effects")


def _ran(stack: Stack, *arguments: str, expect: int = 0, **variables: str) -> str:
    with stack.command(*arguments, **variables) as process:
        code = process.exit_code()
        process.finish()
        assert code == expect, process.log
        assert "Traceback" not in process.log
        assert "hunter2" not in process.log
        return process.log


def test_status_and_runs_print_json_with_stable_names(database: Database, stack: Stack) -> None:
    insert_runs(database, 3)
    insert_runs(database, 1, triggered_by="chatkit")
    status = json.loads(_ran(stack, "status", "--json"))
    assert status["runs"] == {"pending": 4}
    assert (status["pending"], status["pending_others"], status["late_pending"], status["late_share"]) == (3, 1, 0, 0.0)
    assert {"oldest_pending_age", "claimed", "published", "running", "stuck", "slots_due", "processes"} <= set(status)
    runs = json.loads(_ran(stack, "runs", "--json", "--status", "pending", "--limit", "2"))
    assert len(runs) == 2
    assert {"run_id", "workflow_id", "status", "state", "outcome", "fence", "attempts", "waited", "ran"} <= set(runs[0])


def test_status_and_runs_print_tables(database: Database, stack: Stack) -> None:
    insert_runs(database, 3)
    assert "promise of 0 %" in _ran(stack, "status")
    assert "pending" in _ran(stack, "runs")


def test_poll_by_hand_publishes(database: Database, stack: Stack) -> None:
    insert_runs(database, 3)
    assert "claimed 3, published 3" in _ran(stack, "poll")
    assert json.loads(_ran(stack, "poll", "--json"))["claimed"] == 0


def test_runs_are_repaired_by_hand(database: Database, stack: Stack) -> None:
    first, second = insert_runs(database, 2)
    assert f"{first}  would be pending -> failed" in _ran(stack, "fail", first, "--reason", "old", "--dry-run")
    assert f"{first}  pending -> failed" in _ran(stack, "fail", first, "--reason", "old")
    assert f"{second}  pending -> cancelled" in _ran(stack, "cancel", second)
    (done,) = json.loads(_ran(stack, "requeue", first, "--json"))
    assert done == {"run_id": first, "status_before": "failed", "status_after": "pending", "refused": None}
    log = _ran(stack, "requeue", first, "nobody", expect=1)
    assert f"{first}  refused: run is pending already" in log
    assert "nobody  refused: there is no such run" in log
    assert "Missing option" in _ran(stack, "fail", first, expect=2)


def test_dead_runs_are_requeued_by_workflow_and_age(database: Database, stack: Stack) -> None:
    old, new, other = insert_runs(database, 3)
    for run_id in (old, new, other):
        _ran(stack, "fail", run_id, "--reason", "by a test")
    execute(database, "UPDATE workflow_runs SET created_at = now() - interval '3 hours' WHERE id = %s", old)
    execute(database, "UPDATE workflow_runs SET workflow_id = 'other' WHERE id = %s", other)
    (found,) = json.loads(
        _ran(stack, "requeue", "--dead", "--workflow", WORKFLOW_ID, "--since", "2h", "--yes", "--json")
    )
    assert (found["run_id"], found["status_after"]) == (new, "pending")
    assert {row["run_id"] for row in json.loads(_ran(stack, "requeue", "--dead", "--yes", "--json"))} == {old, other}
    assert json.loads(_ran(stack, "requeue", "--dead", "--yes", "--json")) == []


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((), "requeue: expected ids of runs, or a filter such as --workflow"),
        (("--dead", "some-run"), "requeue: ids of runs cannot be combined with a filter"),
        (("some-run", "--workflow", "w"), "requeue: ids of runs cannot be combined with a filter"),
        (("some-run", "--since", "2h"), "requeue: ids of runs cannot be combined with a filter"),
        (("some-run", "--limit", "2"), "--limit cannot be used without a filter"),
        (("--dead",), "requeue with a filter asks before the change, and there is no terminal: add --yes"),
        (("--status", "dead", "--yes"), "--status='dead' is invalid: expected one of pending, running"),
        (("--older-than", "0s", "--yes"), "--older-than='0s' is invalid"),
        (("--workflow", "", "--yes"), "--workflow='' is invalid"),
        (("--dead", "--since", "yesterday"), "--since='yesterday'"),
    ],
)
def test_requeue_of_runs_that_are_not_named_is_refused_in_one_line(
    stack: Stack, given: tuple[str, ...], says: str
) -> None:
    (line,) = _ran(stack, "requeue", *given, expect=2).strip().splitlines()
    assert says in line


def test_poll_with_redis_away_exits_with_four_and_releases(database: Database, stack: Stack) -> None:
    insert_runs(database, 2)
    log = _ran(stack, "poll", REDIS_URL="redis://:hunter2@127.0.0.1:1/0", expect=4)
    assert log.splitlines()[-1].startswith("orcheo-dispatch: ")
    assert {row["outcome"] for row in everything(database, "SELECT outcome FROM orcheo_dispatch.dispatch")} == {
        "released"
    }


@pytest.mark.parametrize("command", ["status", "runs", "poll", "migrate", "dispatcher", "worker"])
def test_database_away_exits_with_three_and_one_line(stack: Stack, command: str) -> None:
    log = _ran(stack, command, ORCHEO_POSTGRES_DSN="postgresql://me:hunter2@127.0.0.1:1/x", expect=3)
    assert log.count("\n") == 1
    assert log.startswith("orcheo-dispatch: ")


def test_missing_schema_names_the_command_that_makes_it(
    orcheo_database: Database, redis_url: str, tmp_path: Path
) -> None:
    stack = Stack(orcheo_database, redis_url, tmp_path / "side-effects")
    assert "run 'orcheo-dispatch migrate'" in _ran(stack, "worker", expect=3)
    assert f"is now revision {newest_revision()}" in _ran(stack, "migrate")
    assert "indexes on pending runs: present" in _ran(stack, "migrate")


def test_migrate_on_an_empty_database_says_what_is_missing(
    empty_database: Database, redis_url: str, tmp_path: Path
) -> None:
    stack = Stack(empty_database, redis_url, tmp_path / "side-effects")
    assert _ran(stack, "migrate", expect=3).startswith("orcheo-dispatch: table workflow_runs is missing")


@pytest.mark.parametrize("command", ["status", "beat", "worker", "check"])
def test_wrong_setting_exits_with_two_and_one_line(stack: Stack, command: str) -> None:
    log = _ran(stack, command, ORCHEO_DISPATCH_POLL_INTERVAL="soon", expect=2)
    assert log.count("\n") == 1
    assert log.startswith("orcheo-dispatch: ORCHEO_DISPATCH_POLL_INTERVAL='soon' is invalid: expected a valid number")


@pytest.mark.parametrize("isolation", ["adaptive", "process"])
def test_wrong_executor_exits_with_two_and_one_line(stack: Stack, isolation: str) -> None:
    log = _ran(stack, "worker", ORCHEO_WORKER_EXECUTOR="no.such:thing", ORCHEO_WORKER_ISOLATION=isolation, expect=2)
    assert log.splitlines()[-1].startswith("orcheo-dispatch: ORCHEO_WORKER_EXECUTOR='no.such:thing' cannot be imported")


def test_check_is_silent_about_nothing(database: Database, stack: Stack) -> None:
    findings = {finding["what"]: finding for finding in json.loads(_ran(stack, "check", "--json"))}
    for what in (
        "settings",
        "database",
        "Orcheo's tables",
        "our schema",
        "index on pending runs",
        "index on turns",
        "broker",
        "executor",
    ):
        assert findings[what]["grade"] == "ok", findings[what]
    assert findings["cron"]["grade"] == "warn"


def test_check_names_what_is_wrong_and_how_to_mend_it(
    orcheo_database: Database, redis_server: EmbeddedRedis, redis_url: str, tmp_path: Path
) -> None:
    import redis

    stack = Stack(orcheo_database, redis_server.url, tmp_path / "side-effects")
    with redis.Redis.from_url(redis_server.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    log = _ran(stack, "check", "--json", ORCHEO_REDIS_URL=redis_url, expect=3)
    findings = {finding["what"]: finding for finding in json.loads(log)}
    assert findings["our schema"]["grade"] == "wrong"
    assert findings["our schema"]["mend"] == "orcheo-dispatch migrate"
    assert findings["maxmemory-policy"]["grade"] == "warn"
    assert findings["Redis of the run slots"]["grade"] == "warn"
    redis_server.kill()
    log = _ran(stack, "check", "--json", ORCHEO_POSTGRES_DSN="postgresql://me:hunter2@127.0.0.1:1/x", expect=3)
    findings = {finding["what"]: finding for finding in json.loads(log)}
    assert findings["database"]["grade"] == findings["broker"]["grade"] == "wrong"


def test_version_is_printed(stack: Stack) -> None:
    assert _ran(stack, "--version").startswith("orcheo-dispatch ")


def test_unknown_command_is_a_usage_error(stack: Stack) -> None:
    assert "No such command" in _ran(stack, "frobnicate", expect=2)
