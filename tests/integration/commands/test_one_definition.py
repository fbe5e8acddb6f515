"""Pending, late, stuck and alive mean the same to the command, the page, the metrics, the views and the alerts."""

from __future__ import annotations

import json
import operator
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import yaml

from orcheo_dispatch.dispatcher.backlog import Backlog
from orcheo_dispatch.dispatcher.page.figures import read_figures
from orcheo_dispatch.shared.broker.app import connect
from orcheo_dispatch.shared.database.connections import open_engine, transaction
from orcheo_dispatch.shared.ledger.overview import Shown, Wanted, runs_of
from tests.support.database.databases import Database
from tests.support.database.runs import everything, execute, insert_runs, installation_of, settings_for
from tests.support.processes.processes import Stack

_ALERTS = Path(__file__).parents[3] / "ops" / "prometheus" / "alerts.yml"
_CHAT = {"message": "hi", "history": [], "thread_id": "t", "session_id": "t", "metadata": {}}
_EXPRESSION = re.compile(r'max\((?P<metric>\w+)(?:\{kind="(?P<kind>\w+)"\})?\) (?P<how>==|>) (?P<number>\d+)')
_HOW = {"==": operator.eq, ">": operator.gt}
_CLAIM = """
INSERT INTO orcheo_dispatch.dispatch
       (run_id, workflow_id, state, fence, attempts, claimed_at, lease_expires_at, begun_at, worker_id, dispatcher_id,
        slot, triggered_by)
SELECT id, workflow_id, %(state)s, 1, 1, now(), now() + %(lease)s::interval, now(), gen_random_uuid(),
       gen_random_uuid(), 'none', triggered_by
  FROM workflow_runs WHERE id = %(run_id)s
"""
_PROCESS = """
INSERT INTO orcheo_dispatch.process (id, kind, host, pid, version, concurrency, running, seen_at, triggers)
VALUES (%(id)s, %(kind)s, 'host', 1, '1', 4, 0, now() - %(silent)s::interval, %(triggers)s)
"""


def _told(database: Database, stack: Stack, redis_url: str) -> dict[str, dict[str, Any]]:
    """Return what each of the five says, under the same names."""
    command = _answer(stack, "status", "--json")
    settings = settings_for(database, redis_url, health_port=1)
    with open_engine(settings, role="test") as engine, transaction(engine, read_only=True) as connection:
        page = read_figures(connection)
        listed = runs_of(connection, Wanted(status=Shown.PENDING), limit=1000)
    with connect(redis_url) as client:
        backlog = Backlog(settings, installation_of(database), client)
        try:
            samples = {
                (sample.name.removeprefix("orcheo_dispatch_"), *sample.labels.values()): sample.value
                for family in backlog.collect()
                for sample in family.samples
            }
        finally:
            backlog.close()
    (kpi,) = everything(database, "SELECT * FROM orcheo_dispatch.pending_kpi")
    (queue,) = everything(database, "SELECT * FROM orcheo_dispatch.queue_and_backlog")
    beats = everything(database, "SELECT FROM orcheo_dispatch.processes WHERE kind = 'beat' AND alive")
    # Claims are pending in the API's table as well: the page lists both.
    waiting = {row["run_id"] for row in listed if row["status"] == "pending"}
    told: dict[str, dict[str, Any]] = {
        "command": {
            "pending": command["pending"],
            "late": command["late_pending"],
            "stuck": command["stuck"],
            "workers": sum(each["kind"] == "worker" for each in command["processes"]),
            "beat": any(each["kind"] == "beat" for each in command["processes"]),
        },
        "page": {
            "pending": page.now["pending"],
            "late": page.promise["late"],
            "stuck": page.now["stuck"],
            "workers": sum(each["kind"] == "worker" and each["alive"] for each in page.processes),
            "beat": page.alive("beat"),
        },
        "metrics": {
            "pending": samples["pending_runs",],
            "late": samples["pending_late_runs",],
            "stuck": samples["stuck_runs",],
            "workers": samples["alive_processes", "worker"],
            "beat": samples["alive_processes", "beat"] > 0,
        },
        "views": {
            "pending": kpi["pending"],
            "late": kpi["late"],
            "stuck": queue["stuck"],
            "workers": queue["workers"],
            "beat": bool(beats),
        },
    }
    assert len(waiting) == queue["backlog"] == kpi["pending"]
    assert len(page.lists["stuck"] or ()) == queue["stuck"] == len(_answer(stack, "runs", "--stuck", "--json"))
    told["alerts"] = {
        alert: _fires(expression, samples)
        for alert, expression in _alerts().items()
        if alert in {"OrcheoRunsPendingTooLong", "OrcheoRunsStuck", "OrcheoNoWorker", "OrcheoRunsUnclaimed"}
    }
    return told


def _answer(stack: Stack, *arguments: str) -> Any:
    with stack.command(*arguments) as process:
        code = process.exit_code()
        process.finish()
        assert code == 0, process.log
        return json.loads(process.log)


def _alerts() -> dict[str, str]:
    groups = yaml.safe_load(_ALERTS.read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def _fires(expression: str, samples: dict[tuple[str, ...], float]) -> bool:
    found = _EXPRESSION.fullmatch(expression)
    assert found is not None, expression
    key = (found["metric"].removeprefix("orcheo_dispatch_"), *([found["kind"]] if found["kind"] else []))
    return bool(_HOW[found["how"]](samples[key], float(found["number"])))


def _age(database: Database, run_id: str, seconds: int) -> None:
    execute(database, f"UPDATE workflow_runs SET created_at = now() - interval '{seconds} s' WHERE id = %s", run_id)


def _claimed(database: Database, state: str, lease: str) -> str:
    (run_id,) = insert_runs(database)
    if state == "running":
        execute(database, "UPDATE workflow_runs SET status = 'running' WHERE id = %s", run_id)
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(_CLAIM, {"run_id": run_id, "state": state, "lease": lease})
    return run_id


def _seen(database: Database, kind: str, silent: int, triggers: list[str] | None = None) -> None:
    values = {"id": uuid4(), "kind": kind, "silent": f"{silent} s", "triggers": triggers}
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(_PROCESS, values)


@pytest.mark.parametrize(
    ("triggers", "unlisted_is_ours"),
    [(None, False), (["webhook"], False), (["webhook", "nightly"], True), (["*"], True)],
)
@pytest.mark.parametrize("well", [True, False])
def test_five_interfaces_agree(
    database: Database, stack: Stack, redis_url: str, triggers: list[str] | None, unlisted_is_ours: bool, well: bool
) -> None:
    # As late as may be, or a little later.
    (edge,) = insert_runs(database)
    _age(database, edge, 280 if well else 301)
    insert_runs(database, 3)
    # Never ours, whatever the allow-list says, and however late.
    (chat,) = insert_runs(database, triggered_by="ada@example.org", inputs=_CHAT)
    _age(database, chat, 4000)
    (unlisted,) = insert_runs(database, triggered_by="nightly")
    _age(database, unlisted, 200)
    # Pushed by the API, so ours, whatever its label.
    (pushed,) = insert_runs(database, triggered_by="pushed")
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(_CLAIM, {"run_id": pushed, "state": "published", "lease": "-1 s"})
    _claimed(database, "claimed", "60 s")
    _claimed(database, "running", "20 s")
    _claimed(database, "running", "20 s" if well else "-1 s")
    if triggers is not None:
        _seen(database, "dispatcher", 5, triggers)
    _seen(database, "worker", 20 if well else 31)
    _seen(database, "beat", 20 if well else 31)
    _seen(database, "worker", 3600)

    told = _told(database, stack, redis_url)

    expected = {
        "pending": 6 + unlisted_is_ours,
        "late": 0 if well else 1,
        "stuck": 0 if well else 1,
        "workers": 1 if well else 0,
        "beat": well,
    }
    alerts = told.pop("alerts")
    assert told == dict.fromkeys(("command", "page", "metrics", "views"), expected)
    assert alerts == {
        "OrcheoRunsPendingTooLong": not well,
        "OrcheoRunsStuck": not well,
        "OrcheoNoWorker": not well,
        "OrcheoRunsUnclaimed": True,
    }


def test_runs_of_others_hide_none_of_ours(database: Database) -> None:
    """A view of the 25,000 oldest pending runs once showed an empty backlog behind as many of ChatKit's."""
    execute(
        database,
        "INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at,"
        " updated_at) SELECT 'chat-' || n, 'w', 'v', 'pending', 'chatkit', '{}', now() - interval '1 hour', now()"
        " FROM generate_series(1, 25100) AS n",
    )
    (ours,) = insert_runs(database)
    _age(database, ours, 400)
    (kpi,) = everything(database, "SELECT pending, late FROM orcheo_dispatch.pending_kpi")
    (queue,) = everything(database, "SELECT backlog FROM orcheo_dispatch.queue_and_backlog")
    hours = everything(database, "SELECT runs FROM orcheo_dispatch.runs_by_hour WHERE status = 'pending'")
    assert (kpi["pending"], kpi["late"], queue["backlog"], hours) == (1, 1, 1, [{"runs": 1}])
