"""The commands that look: `status --watch`, `runs` and `run`."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.support.database.databases import Database
from tests.support.database.roles import Kind
from tests.support.database.runs import all_are, execute, insert_runs, ledger, nth_claim, one, statuses
from tests.support.processes.processes import ROOT, Stack, until

_SECRET = "barracuda"


def _ran(stack: Stack, *arguments: str, expect: int = 0, **variables: str) -> str:
    with stack.command(*arguments, **variables) as process:
        code = process.exit_code()
        process.finish()
        assert code == expect, process.log
        assert "Traceback" not in process.log
        return process.log


def _listed(stack: Stack, *arguments: str) -> list[str]:
    return [row["run_id"] for row in json.loads(_ran(stack, "runs", "--json", *arguments))]


def _story(stack: Stack, *arguments: str, **variables: Any) -> dict[str, Any]:
    story: dict[str, Any] = json.loads(_ran(stack, "run", "--json", *arguments, **variables))
    return story


# -- runs


def test_runs_are_found_by_what_they_are_and_when_they_were_made(database: Database, stack: Stack) -> None:
    old, new = insert_runs(database, 2)
    (cli,) = insert_runs(database, triggered_by="cli")
    execute(database, "UPDATE workflow_runs SET workflow_id = 'other' WHERE id = %s", cli)
    execute(database, "UPDATE workflow_runs SET created_at = now() - interval '3 hours' WHERE id = %s", old)
    _ran(stack, "fail", new, "--reason", "by a test")
    assert _listed(stack, "--status", "failed") == [new]
    assert set(_listed(stack, "--status", "failed", "--status", "pending")) == {old, new, cli}
    assert _listed(stack, "--trigger", "cli") == [cli]
    assert _listed(stack, "--outcome", "failed") == [new]
    assert _listed(stack, "--workflow", "oth") == [cli]
    assert _listed(stack, "--until", "2h") == [old]
    assert set(_listed(stack, "--since", "2h")) == {new, cli}
    assert _listed(stack, "--since", "2020-01-01", "--until", "2020-01-02T00:00+01:00") == []
    assert _listed(stack, "--limit", "1") in ([new], [cli])
    table = _ran(stack, "runs", "--until", "2h")
    assert "3 h ago" in table


def test_lost_and_stuck_runs_are_found(database: Database, stack: Stack) -> None:
    fine, lost, requeued, stuck = insert_runs(database, 4)
    _ran(stack, "poll")
    settled = (
        "UPDATE orcheo_dispatch.dispatch SET state = 'settled', outcome = %s, reason = %s, settled_at = now(),"
        " lease_expires_at = NULL WHERE run_id = %s"
    )
    execute(database, settled, "succeeded", None, fine)
    execute(database, settled, "lost", "drained", lost)
    execute(database, settled, "requeued", "worker_lost", requeued)
    _begin_long_ago(database, stuck)
    assert set(_listed(stack, "--lost")) == {lost, requeued}
    assert _listed(stack, "--stuck") == [stuck]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--status", "done"],
            "--status='done' is invalid: expected one of pending, running, succeeded, failed, cancelled",
        ),
        (
            ["--outcome", "won"],
            "--outcome='won' is invalid: expected one of succeeded, failed, cancelled, timed_out, lost,",
        ),
        (
            ["--since", "soon"],
            "--since='soon' is invalid: expected a span such as 90s, 15m, 2h, 3d or 1w, or a time such as",
        ),
        (["--workflow", "%"], "--workflow='%' is invalid: no workflow with runs has an id that begins so"),
        (["--workflow", "w"], "--workflow='w' is invalid: the beginning of several: w-1, w-2"),
    ],
)
def test_wrong_filter_is_one_line_that_says_what_is_taken(
    database: Database, stack: Stack, arguments: list[str], said: str
) -> None:
    for number, run_id in enumerate(insert_runs(database, 2), start=1):
        execute(database, "UPDATE workflow_runs SET workflow_id = %s WHERE id = %s", f"w-{number}", run_id)
    log = _ran(stack, "runs", *arguments, expect=2)
    assert log.startswith(f"orcheo-dispatch: {said}")
    assert log.count("\n") == 1


# -- run


def test_story_of_a_run_tells_who_did_what_in_order(database: Database, stack: Stack) -> None:
    (run_id,) = insert_runs(database, inputs={"do": "wait", "seconds": 0.5, "text": _SECRET})
    with stack.running("worker") as worker, stack.running("dispatcher") as dispatcher:
        until(lambda: all_are(database, "succeeded"), what="the run succeeds")
        story = _story(stack, run_id[:13])
        shown = _ran(stack, "run", run_id)
    assert (story["run_id"], story["status"], story["outcome"], nth_claim(story["fence"])) == (
        run_id,
        "succeeded",
        "succeeded",
        1,
    )
    events = [(event["what"], event["by"].rpartition(" ")[2]) for event in story["events"]]
    worked, dispatched = str(worker.pid), str(dispatcher.pid)
    assert events[:2] == [("created", "webhook"), ("claimed", dispatched)]
    # A message is marked as published if its run has not begun after a second.
    events = [event for event in events if event != ("published", dispatched)]
    assert events[2:] == [("begun", worked), ("last heartbeat", worked), ("settled", worked)]
    assert story["events"][0]["after"] is None
    assert story["events"][-1]["after"] >= 0
    assert (story["hints"], story["audit_readable"]) == ([], True)
    assert story["worker"]["pid"] == worker.pid
    assert f"pid {worker.pid}" in shown
    assert _SECRET not in json.dumps(story) + shown


def test_story_names_processes_that_are_gone(database: Database, stack: Stack) -> None:
    (run_id,) = insert_runs(database)
    _ran(stack, "poll")
    assert _story(stack, run_id)["dispatcher"]["host"] is None
    assert "(gone)" in _ran(stack, "run", run_id)


def test_texts_of_errors_are_shown_only_where_asked_for(database: Database, stack: Stack) -> None:
    text = f"{_SECRET} at postgresql://me:hunter2@db/x"
    (run_id,) = insert_runs(database, inputs={"do": "fail", "text": text})
    with stack.running("worker"), stack.running("dispatcher"):
        until(lambda: all_are(database, "failed"), what="the run fails")
    # As Orcheo's own worker leaves it behind: not redacted.
    execute(database, "UPDATE workflow_runs SET payload = payload || jsonb_build_object('error', %s::text)", text)
    hidden = _ran(stack, "run", run_id) + _ran(stack, "run", run_id, "--json")
    assert "failed: ValueError" in hidden
    assert _SECRET not in hidden
    asked = _ran(stack, "run", run_id, "--error")
    assert "barracuda at postgresql://me:***@db/x" in asked
    assert "hunter2" not in asked
    # A dashboard cannot read payloads, and says so.
    dashboard: dict[str, Any] = {"ORCHEO_POSTGRES_DSN": database.dsn_of(Kind.DASHBOARD)}
    if database.roles:
        story = _story(stack, run_id, "--error", **dashboard)
        assert (story["audit_readable"], story["error"], story["status"]) == (False, None, "failed")
        assert "its audit log cannot be read" in _ran(stack, "run", run_id, **dashboard)


def test_story_of_a_requeued_run_has_its_earlier_attempt(database: Database, stack: Stack) -> None:
    (run_id,) = insert_runs(database)
    _ran(stack, "fail", run_id, "--reason", "old")
    _ran(stack, "requeue", run_id, "--reason", "once more")
    story = _story(stack, run_id)
    assert [(event["what"], event["by"]) for event in story["events"]] == [
        ("created", "webhook"),
        ("run_failed", "operator"),
        ("settled", "operator"),
        ("run_requeued", "operator"),
    ]
    assert (story["status"], story["outcome"], story["reason"]) == ("pending", "requeued", "by hand")
    assert "once more" not in json.dumps(story)
    assert "once more" in _ran(stack, "run", run_id, "--error")


def test_hints_say_why_a_run_does_not_get_on(database: Database, stack: Stack) -> None:
    (chat,) = insert_runs(database, triggered_by="chatkit")
    (unclaimed,) = _hints(stack, chat)
    assert unclaimed.startswith("no dispatcher claims it: ChatKit created it, or 'chatkit' is not among the")
    (late,) = insert_runs(database)
    execute(database, "UPDATE workflow_runs SET created_at = now() - interval '10 minutes' WHERE id = %s", late)
    said, start = _hints(stack, late)
    assert said.startswith("late: pending for 10 min ")
    assert said.endswith(" s, the promise is 5 min 0 s")
    assert start == "no dispatcher is alive: start one"
    (queued,) = insert_runs(database)
    _ran(stack, "poll")
    assert _hints(stack, queued)[-1] == "no worker is alive: start one"
    execute(database, "UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() - interval '1 s'")
    assert any("its dispatch lease has expired" in hint for hint in _hints(stack, queued))
    _begin_long_ago(database, queued)
    stuck, what = _hints(stack, queued)
    assert stuck.startswith("stuck: its lease expired ")
    assert stuck.endswith("its worker is gone")
    assert what == "no dispatcher is alive to settle it: start one"
    held = _hints(stack, queued, ORCHEO_DISPATCH_LOST_RUNS="hold")[-1]
    assert held.startswith("ORCHEO_DISPATCH_LOST_RUNS is hold: decide by")
    (others,) = insert_runs(database)
    execute(database, "UPDATE workflow_runs SET status = 'running' WHERE id = %s", others)
    assert _hints(stack, others)[0].startswith("another process began it")
    execute(database, "DELETE FROM workflow_runs WHERE id = %s", queued)
    assert _hints(stack, queued) == ["the API has deleted this run: only its row in the ledger is left"]


def test_run_that_is_not_there_or_is_several_is_one_line(database: Database, stack: Stack) -> None:
    insert_runs(database, 40)
    log = _ran(stack, "run", "nobody", expect=1)
    assert log == "orcheo-dispatch: there is no run 'nobody'\n"
    assert _ran(stack, "run", "%", expect=1) == "orcheo-dispatch: there is no run '%'\n"
    assert _ran(stack, "run", "", expect=1) == "orcheo-dispatch: there is no run ''\n"
    twice = next(digit for digit in "0123456789abcdef" if _begins(database, digit) > 1)
    log = _ran(stack, "run", twice, expect=2)
    assert log.startswith(f"orcheo-dispatch: run='{twice}' is invalid: the beginning of several: ")
    assert log.count("\n") == 1


def _begins(database: Database, digit: str) -> int:
    return int(one(database, "SELECT count(*) AS runs FROM workflow_runs WHERE starts_with(id, %s)", digit)["runs"])


def _hints(stack: Stack, run_id: str, **variables: Any) -> list[str]:
    hints: list[str] = _story(stack, run_id, **variables)["hints"]
    return hints


def _begin_long_ago(database: Database, run_id: str) -> None:
    """Make the row of a run whose worker was killed a minute ago."""
    execute(database, "UPDATE workflow_runs SET status = 'running' WHERE id = %s", run_id)
    execute(
        database,
        "UPDATE orcheo_dispatch.dispatch SET state = 'running', worker_id = gen_random_uuid(), attempts = 1,"
        " begun_at = now() - interval '90 s', heartbeat_at = now() - interval '90 s',"
        " lease_expires_at = now() - interval '60 s' WHERE run_id = %s",
        run_id,
    )
    assert ledger(database, run_id)["state"] == "running"


# -- status --watch


@contextmanager
def _refusing(admin: psycopg.Connection[Any], database: Database) -> Iterator[None]:
    """Have the server refuse the database for a while, as one does that is unavailable."""
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    admin.execute(allow.format(sql.Identifier(database.name), sql.SQL("false")))
    admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [database.name])
    try:
        yield
    finally:
        admin.execute(allow.format(sql.Identifier(database.name), sql.SQL("true")))


def test_watch_in_a_pipe_prints_one_status_after_the_other_and_outlasts_the_database(
    admin: psycopg.Connection[Any], database: Database, stack: Stack
) -> None:
    insert_runs(database, 3)
    with stack.command("status", "--watch", "--interval", "0.2", "--json") as watch:
        until(lambda: len(watch.lines) >= 2, what="two looks")
        assert [json.loads(line)["pending"] for line in watch.lines[:2]] == [3, 3]
        with _refusing(admin, database):
            watch.saw("orcheo-dispatch: database unavailable: ")
        assert statuses(database) == {"pending"}
        insert_runs(database, 1)
        watch.saw('"pending": 4')
        watch.signal(signal.SIGINT)
        assert watch.exit_code() == 0
        watch.finish()
    assert "Traceback" not in watch.log


def test_watch_in_a_terminal_is_live_and_ends_with_ctrl_c(
    admin: psycopg.Connection[Any], database: Database, stack: Stack
) -> None:
    insert_runs(database, 3)
    arguments = ("status", "--watch", "--interval", "0.2")
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "60", **stack.environment_of(*arguments)}
    command = [sys.executable, "-m", "orcheo_dispatch.ops.cli", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=slave, stdout=slave, stderr=slave) as watch:
        os.close(slave)
        try:
            _read_until(master, b"again in 0.2 s, Ctrl-C ends")
            with _refusing(admin, database):
                _read_until(master, b"database unavailable: ")
            insert_runs(database, 39)
            _read_until(master, b"42")
            watch.send_signal(signal.SIGINT)
            rest = _read_until(master, None)
            assert watch.wait(60) == 0
            assert b"Traceback" not in rest
        finally:
            watch.kill()
            os.close(master)


def _read_until(terminal: int, wanted: bytes | None) -> bytes:
    """Read what a terminal shows until it shows `wanted`, or until its end."""
    shown = b""
    while wanted is None or wanted not in shown:
        try:
            more = os.read(terminal, 65_536)
        except OSError:
            more = b""
        if not more:
            assert wanted is None, shown.decode(errors="replace")
            break
        shown += more
    return shown
