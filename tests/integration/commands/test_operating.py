"""The commands of policies, pauses and repairs of many runs, as an operator gives them."""

from __future__ import annotations

import getpass
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.database.databases import Database
from tests.support.database.refusals import meddle
from tests.support.database.runs import WORKFLOW_ID, WORKSPACE_ID, everything, execute, insert_runs, one
from tests.support.processes.processes import Stack, until

ODD = "O'Brien \"; -- ünï"


@pytest.fixture
def stack(database: Database, redis_url: str, tmp_path: Path) -> Stack:
    """The command on a database of its own, with one workflow."""
    _workflow(database, WORKFLOW_ID)
    return Stack(database, redis_url, tmp_path / "side-effects")


def _workflow(database: Database, workflow_id: str) -> None:
    columns = {
        row["column_name"]: row["data_type"]
        for row in everything(
            database,
            "SELECT column_name, data_type FROM information_schema.columns"
            " WHERE table_name = 'workflows' AND is_nullable = 'NO' AND column_default IS NULL",
        )
    }
    values = {
        name: {"jsonb": "'{}'", "boolean": "false", "timestamp with time zone": "now()"}.get(kind, "'x'")
        for name, kind in columns.items()
        if name != "id"
    }
    execute(
        database,
        f"INSERT INTO workflows (id, {', '.join(values)}) VALUES (%s, {', '.join(values.values())})"
        " ON CONFLICT DO NOTHING",
        workflow_id,
    )


def _ran(stack: Stack, *arguments: str, expect: int = 0, **variables: str) -> str:
    with stack.command(*arguments, **variables) as process:
        code = process.exit_code()
        process.finish()
        assert code == expect, process.log
        assert "Traceback" not in process.log
        return process.log


def _json(stack: Stack, *arguments: str, expect: int = 0) -> Any:
    return json.loads(_ran(stack, *arguments, "--json", expect=expect))


def _fail(database: Database, runs: list[str], reason: str = "ValueError") -> None:
    execute(database, "UPDATE workflow_runs SET status = 'failed' WHERE id = ANY (%s)", runs)
    execute(
        database,
        "INSERT INTO orcheo_dispatch.dispatch (run_id, workflow_id, workspace_id, triggered_by, state, outcome, fence,"
        " slot, claimed_at, settled_at, dispatcher_id, reason)"
        " SELECT r.id, r.workflow_id, r.workspace_id, r.triggered_by, 'settled', 'failed', 1, 'none', now(), now(),"
        " gen_random_uuid(), %s FROM workflow_runs AS r WHERE r.id = ANY (%s)",
        reason,
        runs,
    )


def _status(database: Database) -> dict[str, int]:
    rows = everything(database, "SELECT status, count(*) AS runs FROM workflow_runs GROUP BY 1")
    return {row["status"]: row["runs"] for row in rows}


def test_a_policy_is_set_listed_explained_and_cleared(database: Database, stack: Stack) -> None:
    insert_runs(database, 2)
    of = ("--workflow", WORKFLOW_ID[:8])
    row = _json(
        stack, "policy", "set", *of, "--max-running", "5", "--rate", "100/1m", "--queue", "gpu", "--why", "supplier"
    )
    assert (row["scope"], row["workflow_id"], row["workspace_id"]) == ("workflow", WORKFLOW_ID, None)
    assert (row["max_running"], row["rate_runs"], row["rate_seconds"], row["queue"]) == (5, 100, 60, "gpu")
    assert (row["by"], row["why"]) == (os.environ.get("SUDO_USER") or getpass.getuser(), "supplier")
    _ran(stack, "policy", "set", "--workspace", WORKSPACE_ID, "--priority", "-2", "--timeout", "15m")
    _ran(stack, "policy", "set", "--all", "--retries", "off", "--lost-runs", "HOLD", "--isolation", "process")
    said = _ran(stack, "policy", "set", *of, "--rate", "none")
    assert "no live worker consumes queue gpu" in said
    assert "rate" not in said
    assert "max_running=5" in said
    assert [each["scope"] for each in _json(stack, "policy", "list")] == ["all", "workspace", "workflow"]

    found = _json(stack, "policy", "explain", WORKFLOW_ID[:8])
    fields = {each["field"]: (each["value"], each["scope"], each["variable"]) for each in found["fields"]}
    assert fields == {
        "paused": (False, None, None),
        "queue": ("gpu", "workflow", None),
        "timeout_seconds": (900, "workspace", None),
        "lost_runs": ("hold", "all", None),
        "retries": ("off", "all", None),
        "isolation": ("process", "all", None),
    }
    limits = {each["scope"]: (each["running"], each["max_running"], each["priority"]) for each in found["limits"]}
    assert limits == {"workflow": (0, 5, None), "workspace": (0, None, -2), "all": (0, None, None)}
    assert (found["pending"], found["workers"], found["workspace_id"]) == (2, 0, WORKSPACE_ID)
    table = _ran(stack, "policy", "explain", WORKFLOW_ID)
    assert "no live worker consumes queue gpu" in table
    assert "0 of 5" in table

    assert _json(stack, "policy", "clear", *of)["queue"] == "gpu"
    assert _json(stack, "policy", "clear", *of) is None
    found = _json(stack, "policy", "explain", WORKFLOW_ID)
    assert {each["field"]: each["variable"] for each in found["fields"]}["timeout_seconds"] is None
    _ran(stack, "policy", "clear", "--workspace", WORKSPACE_ID)
    _ran(stack, "policy", "clear", "--all")
    found = _json(stack, "policy", "explain", WORKFLOW_ID)
    assert {each["variable"] for each in found["fields"]} == {
        None,
        "ORCHEO_WORKER_RUN_TIMEOUT",
        "ORCHEO_DISPATCH_LOST_RUNS",
        "ORCHEO_DISPATCH_RETRIES",
        "ORCHEO_WORKER_ISOLATION",
    }


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--all", "--workflow", "x", "--priority", "1"), "expected one of --all, --workspace and --workflow"),
        (("--priority", "1"), "expected one of --all, --workspace and --workflow"),
        (("--workspace", "", "--priority", "1"), "--workspace='' is invalid"),
        (("--all",), "expected a field"),
        (("--all", "--priority", "1"), "--priority cannot be combined with --all"),
        (("--workflow", "x", "--priority", "6"), "--priority='6' is invalid: expected an integer from -5 to 5"),
        (("--workflow", "x", "--max-running", "0"), "--max-running='0' is invalid"),
        (("--workflow", "x", "--max-running", "five"), "--max-running='five' is invalid"),
        (("--workflow", "x", "--rate", "100"), "--rate='100' is invalid"),
        (("--workflow", "x", "--rate", "100/8d"), "--rate='100/8d' is invalid"),
        (("--workflow", "x", "--rate", "0/1m"), "--rate='0/1m' is invalid"),
        (("--workflow", "x", "--rate", "1/1.5s"), "--rate='1/1.5s' is invalid"),
        (("--workflow", "x", "--queue", "GPU; DROP"), "--queue='GPU; DROP' is invalid"),
        (("--workflow", "x", "--timeout", "2y"), "--timeout='2y' is invalid"),
        (("--workflow", "x", "--timeout", "99w"), "--timeout='99w' is invalid"),
        (("--workflow", "x", "--lost-runs", "retry"), "--lost-runs='retry' is invalid: expected one of resume"),
        (("--workflow", "x", "--retries", "on"), "--retries='on' is invalid"),
        (("--workflow", "x", "--isolation", "vm"), "--isolation='vm' is invalid"),
    ],
)
def test_a_bad_policy_is_refused_in_one_line_that_names_the_option(
    database: Database, stack: Stack, given: tuple[str, ...], says: str
) -> None:
    (line,) = _ran(stack, "policy", "set", *given, expect=2).strip().splitlines()
    assert says in line
    assert everything(database, "SELECT FROM orcheo_dispatch.policy") == []


@pytest.mark.parametrize("option", ["--workflow", "--workspace"])
def test_an_unknown_scope_exits_with_one(database: Database, stack: Stack, option: str) -> None:
    execute(database, "CREATE TABLE IF NOT EXISTS workspaces (id uuid PRIMARY KEY, slug text)")
    execute(database, "GRANT SELECT ON workspaces TO PUBLIC")
    for command in (("pause", "--why", "x"), ("unpause",), ("policy", "clear"), ("policy", "set", "--paused")):
        (line,) = _ran(stack, *command, option, ODD, expect=1).strip().splitlines()
        assert f"there is no {option[2:]}" in line


def test_a_workspace_without_runs_is_looked_up_in_orcheos_table(database: Database, stack: Stack) -> None:
    known = "7f5b3c1e-0000-4000-8000-000000000001"
    execute(database, "DROP TABLE IF EXISTS workspaces CASCADE")
    _ran(stack, "pause", "--workspace", ODD, "--why", "no table to look it up in")
    execute(database, "CREATE TABLE workspaces (id uuid PRIMARY KEY, slug text)")
    execute(database, "INSERT INTO workspaces VALUES (%s, 'acme')", known)
    _ran(stack, "pause", "--workspace", "no-right-to-look-it-up", "--why", "x")
    execute(database, "GRANT SELECT ON workspaces TO PUBLIC")
    _ran(stack, "pause", "--workspace", "unknown", "--why", "x", expect=1)
    _ran(stack, "pause", "--workspace", known, "--why", "x")
    assert _json(stack, "unpause", "--workspace", ODD)["changed"] is True


def test_a_pause_is_taken_back_and_a_wider_one_is_named(database: Database, stack: Stack) -> None:
    of = ("--workflow", WORKFLOW_ID)
    assert "paused" in _ran(stack, "pause", "--all", "--why", "audit", "--for", "2h")
    _ran(stack, "pause", *of, "--why", "supplier", "--until", "2040-01-01T00:00")
    status = _json(stack, "status")
    assert [(each["scope"], each["why"]) for each in status["paused"]] == [
        ("all runs", "audit"),
        (f"workflow {WORKFLOW_ID}", "supplier"),
    ]
    assert "supplier" in _ran(stack, "status")
    said = _ran(stack, "unpause", *of)
    assert "still paused by the policy of all runs until" in said
    command = re.search(r"orcheo-dispatch (policy set .* --no-paused)", said)
    assert command is not None
    _ran(stack, *command[1].split())
    assert _json(stack, "unpause", *of) == {
        "scope": "workflow",
        "workspace_id": None,
        "workflow_id": WORKFLOW_ID,
        "changed": False,
        "paused": False,
        "paused_by": None,
        "paused_until": None,
        "maintenance": False,
    }
    assert _json(stack, "unpause", "--all")["changed"] is True
    # The row of all runs said nothing else.
    assert [each["scope"] for each in _json(stack, "policy", "list")] == ["workflow"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--until", "2001-01-01"), "--until='2001-01-01' is invalid: expected a time in the future"),
        (("--until", "2h"), "--until='2h' is invalid"),
        (("--for", "soon"), "--for='soon' is invalid"),
        (("--for", "2h", "--until", "2040-01-01"), "--until cannot be combined with --for"),
    ],
)
def test_a_bad_end_of_a_pause_is_refused(stack: Stack, given: tuple[str, ...], says: str) -> None:
    (line,) = _ran(stack, "pause", "--all", "--why", "x", *given, expect=2).strip().splitlines()
    assert says in line


def test_maintenance_is_the_first_line_of_status(database: Database, stack: Stack) -> None:
    (run_id,) = insert_runs(database)
    assert "maintenance is on" in _ran(stack, "maintenance", "on", "--why", "upgrade")
    assert "maintenance was already on" in _ran(stack, "maintenance", "on")
    assert _ran(stack, "status").startswith("MAINTENANCE IS ON")
    assert _json(stack, "run", run_id)["held_back"] == "maintenance"
    assert "maintenance is on" in _ran(stack, "run", run_id)
    assert _json(stack, "maintenance", "off")["maintenance"] is False
    assert "was already off" in _ran(stack, "maintenance", "off")
    assert everything(database, "SELECT FROM orcheo_dispatch.policy") == []
    actions = [each["action"] for each in _json(stack, "operations")]
    assert actions == ["policy clear", "policy set", "policy set"]
    assert "upgrade" in _ran(stack, "operations", "--limit", "3")


@pytest.mark.parametrize(
    ("policy", "reason", "says"),
    [
        (("--paused",), "paused", "its workflow is paused"),
        (("--queue", "gpu"), "no_worker", "no live worker consumes queue gpu"),
        (("--max-running", "1"), "limit_reached", "limit reached: 1 of at most 1 runs of its workflow"),
        (("--rate", "1/1h"), "rate_used_up", "rate used up: 1 of at most 1 claims of its workflow"),
        (("--priority", "2"), "in_turn", ""),
    ],
)
def test_a_pending_run_says_why_it_waits(
    database: Database, stack: Stack, policy: tuple[str, ...], reason: str, says: str
) -> None:
    held, running = insert_runs(database, 2)
    execute(
        database,
        "INSERT INTO orcheo_dispatch.process (id, kind, host, pid, version, concurrency, running, started_at, seen_at)"
        " VALUES (gen_random_uuid(), 'worker', 'h', 1, 'v', 4, 0, now(), now() + interval '1 hour')",
    )
    execute(database, "UPDATE workflow_runs SET status = 'running' WHERE id = %s", running)
    execute(
        database,
        "INSERT INTO orcheo_dispatch.dispatch (run_id, workflow_id, workspace_id, triggered_by, state, fence, slot,"
        " claimed_at, lease_expires_at, dispatcher_id)"
        " SELECT id, workflow_id, workspace_id, triggered_by, 'published', 1, 'none', now(), now() + interval '1 h',"
        " gen_random_uuid() FROM workflow_runs WHERE id = %s",
        running,
    )
    execute(
        database,
        "INSERT INTO orcheo_dispatch.rate_use VALUES ('', %s, now() + interval '1 hour', 1)",
        WORKFLOW_ID,
    )
    _ran(stack, "policy", "set", "--workflow", WORKFLOW_ID, *policy)
    (wait,) = _json(stack, "runs", "--pending")
    assert (wait["run_id"], wait["reason"]) == (held, reason)
    assert wait["scope"] == ("workflow" if says else None)
    story = _json(stack, "run", held)
    assert story["held_back"] == reason
    assert any(says in hint for hint in story["hints"]) or not says
    assert reason in _ran(stack, "runs", "--pending")


def test_many_runs_are_requeued_by_filter(database: Database, stack: Stack) -> None:
    runs = insert_runs(database, 130)
    _fail(database, runs[:120], "ValueError")
    _fail(database, runs[120:], ODD)
    said = _ran(stack, "requeue", "--error-class", ODD, "--dry-run")
    assert "would be requeued: 10 runs, refused: 0" in said
    assert _status(database) == {"failed": 130}
    meddle(database, runs[0], condition="NEW.status = 'pending'")
    said = _ran(stack, "requeue", "--workflow", WORKFLOW_ID[:6], "--workspace", WORKSPACE_ID, "--yes", expect=1)
    assert f"{runs[0]}  refused: Postgres refuses it" in said
    assert "requeued: 129 runs, refused: 1" in said
    assert "requeued 129 of 130 runs, refused 1" in said
    assert _status(database) == {"pending": 129, "failed": 1}
    entries = _json(stack, "operations")
    assert sum(each["changed"] for each in entries) == 129
    assert {each["by"] for each in entries} == {os.environ.get("SUDO_USER") or getpass.getuser()}
    assert entries[0]["details"]["workflow"] == WORKFLOW_ID
    assert "cancelled: 129 runs" in _ran(stack, "cancel", "--status", "pending", "--yes")
    assert _json(stack, "requeue", "--status", "cancelled", "--limit", "3", "--yes")[2]["status_after"] == "pending"
    assert "failed: 3 runs" in _ran(stack, "fail", "--since", "1h", "--reason", "by a test", "--yes")
    assert "requeued: 0 runs" in _ran(stack, "requeue", "--error-class", "nothing", "--yes")
    assert "there is no workflow with runs" in _ran(stack, "cancel", "--workflow", ODD, "--yes", expect=1)


def test_two_operators_on_the_same_filter_change_each_run_once(database: Database, stack: Stack) -> None:
    _fail(database, insert_runs(database, 400))
    with (
        stack.command("requeue", "--dead", "--yes", "--json") as ada,
        stack.command("requeue", "--dead", "--yes", "--json") as bob,
    ):
        for process in (ada, bob):
            assert process.exit_code() in {0, 1}
            process.finish()
    assert _status(database) == {"pending": 400}
    assert one(database, "SELECT sum(changed) AS n FROM orcheo_dispatch.operation")["n"] == 400


def test_ctrl_c_ends_between_two_batches_and_says_how_many_were_done(database: Database, stack: Stack) -> None:
    runs = sorted(insert_runs(database, 1000))
    _fail(database, runs)
    # The second batch waits in a trigger until this session lets it continue.
    execute(
        database,
        "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF NEW.id = '{runs[150]}' THEN PERFORM pg_advisory_xact_lock(7); END IF; RETURN NEW; END $$",
    )
    execute(database, "CREATE TRIGGER hold BEFORE UPDATE ON workflow_runs FOR EACH ROW EXECUTE FUNCTION hold()")
    with psycopg.connect(database.dsn) as holder, stack.command("requeue", "--dead", "--yes") as process:
        holder.execute("SELECT pg_advisory_xact_lock(7)")
        waiting = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        until(lambda: everything(database, waiting), what="a batch that waits")
        process.signal(signal.SIGINT)
        holder.rollback()
        assert process.exit_code() == 130
        process.finish()
    done = _status(database)["pending"]
    assert done in {100, 200}
    assert f"interrupted: requeued {done} of 1,000 runs, refused 0" in process.log
    assert one(database, "SELECT sum(changed) AS n FROM orcheo_dispatch.operation")["n"] == done


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1)])
def test_a_terminal_is_asked_with_the_number_of_runs(database: Database, stack: Stack, answer: str, code: int) -> None:
    _fail(database, insert_runs(database, 1200))
    leader, follower = pty.openpty()
    environment = {**os.environ, **stack.environment_of("requeue")}
    with subprocess.Popen(
        [sys.executable, "-m", "orcheo_dispatch.ops.cli", "requeue", "--dead"],
        env=environment, stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(follower)
        shown = _read_until(leader, "requeue 1,200 runs? [y/N]")
        os.write(leader, f"{answer}\n".encode())
        shown += _read_until(leader, "requeued: 1,200 runs" if code == 0 else "nothing was changed")
        assert process.wait(30) == code, shown
    os.close(leader)
    assert _status(database) == {"pending" if code == 0 else "failed": 1200}


def _read_until(leader: int, wanted: str) -> str:
    shown, deadline = "", time.monotonic() + 30
    while wanted not in shown:
        assert time.monotonic() < deadline, shown
        if select.select([leader], [], [], 1)[0]:
            shown += os.read(leader, 65_536).decode(errors="replace")
    return shown
