"""Each command, on rows that hold whatever a client can write: what it prints, no terminal obeys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
import typer
from typer.core import TyperGroup

from orcheo_dispatch.dispatcher.wakeups.ticks import beat_of
from orcheo_dispatch.ops.cli import app
from orcheo_dispatch.shared.cron.record import CronRecord
from tests.support.database.databases import Database
from tests.support.database.runs import WORKFLOW_ID, everything, execute, insert_runs
from tests.support.hostile import HOSTILE, STORABLE, does_harm
from tests.support.processes.processes import Process, Stack

# Each command starts a process: so as many in one text as fit, and what is long by itself.
_TEXTS = (" ".join(text for text in STORABLE if len(text) < 200), *(text for text in STORABLE if len(text) >= 200))
_FORGED = """
INSERT INTO orcheo_dispatch.process (id, kind, host, pid, version, concurrency, running, started_at, seen_at)
SELECT gen_random_uuid(), kind, left(text, 200), 7, left(text, 50), 4, 2, now(), now()
  FROM unnest(%s::text[]) AS t(text), unnest(ARRAY['beat', 'dispatcher', 'worker']) AS k(kind)
"""
_ENDED = """
INSERT INTO orcheo_dispatch.dispatch (run_id, workflow_id, triggered_by, state, outcome, fence, attempts, slot,
                                      claimed_at, begun_at, settled_at, dispatcher_id, worker_id, reason)
SELECT r.id, r.workflow_id, r.triggered_by, 'settled', 'failed', 1, 1, 'none', now(), now(), now(),
       (SELECT id FROM orcheo_dispatch.process WHERE kind = 'dispatcher' LIMIT 1),
       (SELECT id FROM orcheo_dispatch.process WHERE kind = 'worker' LIMIT 1), left(r.triggered_by, 200)
  FROM workflow_runs AS r
"""
_ISOLATED = """
INSERT INTO orcheo_dispatch.isolation (workflow_id, workflow_version_id, reason, by, since)
SELECT left(text, 200), left(text, 200), text, left(text, 200), now() FROM unnest(%s::text[]) AS t(text)
"""
_ALERTS = """
INSERT INTO orcheo_dispatch.alert (name, subject, told_at)
SELECT name, left(text, 200), now()
  FROM unnest(%s::text[]) AS t(text), unnest(ARRAY['OrcheoRunsRefused', left(text, 100)]) AS n(name)
"""
_DECIDED = """
INSERT INTO orcheo_dispatch.policy (workspace_id, paused, why) SELECT left(text, 200), true, text
  FROM unnest(%s::text[]) AS t(text)
"""
_PAYLOADS = """
UPDATE workflow_runs
   SET status = 'failed', workflow_id = left(triggered_by, 100),
       payload = payload || jsonb_build_object('error', triggered_by, 'audit_log', jsonb_build_array(
           jsonb_build_object('at', now(), 'action', triggered_by, 'actor', triggered_by,
                              'metadata', jsonb_build_object('error', triggered_by))))
"""


@pytest.fixture
def stack(database: Database, redis_url: str, tmp_path: Path) -> Stack:
    for text in _TEXTS:
        insert_runs(database, triggered_by=text)
    execute(database, _PAYLOADS)
    execute(database, _FORGED, list(_TEXTS))
    execute(database, _ENDED)
    execute(database, _ISOLATED, list(_TEXTS))
    execute(database, _ALERTS, list(_TEXTS))
    execute(database, _DECIDED, list(_TEXTS))
    return Stack(database, redis_url, tmp_path / "side-effects")


# What each command is given; None: it runs until it is told to stop, or shows nothing of a row.
_COMMANDS: dict[str, list[tuple[str, ...]] | None] = {
    "status": [(), ("--json",)],
    "runs": [
        (),
        ("--json",),
        ("--unclaimed",),
        ("--unclaimed", "--json"),
        ("--pending",),
        ("--pending", "--json"),
        ("--trigger", _TEXTS[0]),
        ("--workflow", _TEXTS[0]),
        ("--status", _TEXTS[0]),
    ],
    "run": [("ID", "--error"), ("ID", "--json", "--error"), (_TEXTS[0],)],
    "check": [(), ("--json",)],
    "cancel": [("ID", _TEXTS[0], "--reason", _TEXTS[0]), ("ID", "--json")],
    "fail": [("ID", _TEXTS[1], "--reason", _TEXTS[0])],
    "requeue": [
        ("ID", _TEXTS[0], "--reason", _TEXTS[1], "--dry-run"),
        ("--workflow", _TEXTS[0], "--error-class", _TEXTS[0], "--yes"),
        ("--error-class", _TEXTS[0], "--yes", "--reason", _TEXTS[1]),
        ("--workspace", _TEXTS[0], "--status", "failed", "--yes"),
    ],
    "answer": [
        ("ID", "--json", '"yes"'),
        (_TEXTS[0], "--json", '"yes"'),
        ("ID", "--json", _TEXTS[0]),
        ("--json", '"yes"', "--workspace", _TEXTS[0], "--yes"),
        ("--json", '"yes"', "--workflow", _TEXTS[0], "--dry-run"),
        ("--json", '"yes"', "--since", _TEXTS[0]),
    ],
    "isolate": [
        (_TEXTS[0],),
        ("WORKFLOW", "--why", _TEXTS[0]),
        ("WORKFLOW", "--version", _TEXTS[0]),
        ("WORKFLOW", "--json"),
        ("WORKFLOW", "--clear"),
    ],
    "alerts": [(), ("--json",), ("test",)],
    "policy": [
        ("list",),
        ("list", "--json"),
        ("set", "--workflow", _TEXTS[0], "--paused"),
        ("set", "--workspace", _TEXTS[0], "--paused", "--why", _TEXTS[1]),
        ("set", "--workspace", "w", "--queue", _TEXTS[0]),
        ("set", "--workspace", "w", "--rate", _TEXTS[0]),
        ("clear", "--workspace", _TEXTS[0], "--json"),
        ("explain", "WORKFLOW"),
        ("explain", "WORKFLOW", "--json"),
        ("explain", _TEXTS[0]),
    ],
    "pause": [
        ("--workspace", _TEXTS[0], "--why", _TEXTS[1]),
        ("--workflow", "WORKFLOW", "--why", _TEXTS[0], "--json"),
        ("--all", "--why", "x", "--until", _TEXTS[0]),
    ],
    "unpause": [("--workspace", _TEXTS[0]), ("--workflow", _TEXTS[1]), ("--all", "--json")],
    "maintenance": [("on", "--why", _TEXTS[0]), ("off", "--json"), (_TEXTS[0],)],
    "operations": [(), ("--json",)],
    "poll": [(), ("--json",)],
    "health": [("--url", "http://127.0.0.1:1"), ("--port", "1")],
    "adopt": [(), ("--json",)],
    "init": None,
    "man": None,
    "schema": [(_TEXTS[0],)],
    "migrate": None,
    "roles": None,
    "units": None,
    "beat": None,
    "dispatcher": None,
    "worker": None,
    "api": None,
    "demo": None,
}


def test_each_command_is_tried() -> None:
    """A new command belongs into the table above."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    assert set(group.commands) == set(_COMMANDS)


@pytest.mark.parametrize("command", [name for name, given in _COMMANDS.items() if given])
def test_command_prints_nothing_that_a_terminal_obeys(database: Database, stack: Stack, command: str) -> None:
    run_ids = [str(row["id"]) for row in everything(database, "SELECT id FROM workflow_runs ORDER BY created_at")]
    for arguments in _COMMANDS[command] or []:
        chosen = run_ids if command == "run" and "ID" in arguments else run_ids[:1]
        for run_id in chosen:
            given = [{"ID": run_id, "WORKFLOW": WORKFLOW_ID}.get(argument, argument) for argument in arguments]
            with stack.command(command, *given) as process:
                code = process.exit_code()
                process.finish()
                _assert_harmless(process)
                assert code in {0, 1, 2}, process.log
                assert "unexpected" not in process.log
                assert "Traceback" not in process.log
                # `answer --json` takes the answer.
                if "--json" in arguments and command != "answer":
                    json.loads(process.log)


def _assert_harmless(process: Process) -> None:
    assert does_harm(process.log) == [], process.log


@pytest.mark.parametrize("field", ["host", "outcome", "reason"])
def test_forged_record_of_cron_is_one_harmless_line(redis_url: str, field: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        record = CronRecord(client, "orcheo.cron.forged")
        for text in HOSTILE:
            entry = {"host": "h", "by_itself": True, "outcome": "failed", "reason": "", field: text[:1000]}
            client.set("orcheo.cron.forged.failure", json.dumps(entry), ex=60)
            seen = record.failure()
            assert seen is not None
            shown = getattr(seen, field)
            assert does_harm(shown) == []
            assert "\n" not in shown


def test_host_of_a_forged_tick_is_storable_and_harmless() -> None:
    for text in HOSTILE:
        beat = beat_of({"id": str(uuid4()), "host": text, "pid": 7})
        assert beat is not None
        assert does_harm(beat.host) == []
    forged: list[Any] = [
        None,
        {},
        [],
        "x",
        {"id": 1, "host": 2, "pid": 3},
        {"id": str(uuid4()), "host": "h", "pid": 2**40},
    ]
    for header in forged:
        assert beat_of(header) is None
