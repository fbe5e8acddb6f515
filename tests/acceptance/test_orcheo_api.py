"""Orcheo's own API, as the other acceptance tests use it: what it does without us."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from orcheo_dispatch.shared.errors import DispatchError
from tests.support.database.databases import Database

GREET = """
from langgraph.graph import END, StateGraph
from orcheo.graph.state import State
from orcheo.nodes.logic import SetVariableNode

def build():
    graph = StateGraph(State)
    graph.add_node("start", SetVariableNode(name="start", variables={"greeting": "hello {{inputs.body.name}}"}))
    graph.set_entry_point("start")
    graph.add_edge("start", END)
    return graph
"""


def test_webhook_is_accepted_and_leaves_pending_run(orcheo: OrcheoApi, tmp_path: Path) -> None:
    source = tmp_path / "greet.py"
    source.write_text(GREET)
    workflow_id = orcheo.upload(source, "greet")
    orcheo.configure_webhook(workflow_id)

    fired = orcheo.fire_webhooks(workflow_id, [{"name": f"Ada {number}"} for number in range(30)])
    created = orcheo.create_run(workflow_id, {"body": {"name": "Bob"}})

    assert [run["input_payload"]["body"]["name"] for run in fired] == [f"Ada {number}" for number in range(30)]
    assert {run["triggered_by"] for run in fired} == {"webhook"}
    assert created["triggered_by"] == "cli"
    runs = orcheo.runs(workflow_id)
    assert {run["id"] for run in runs} == {created["id"], *(run["id"] for run in fired)}
    assert {run["status"] for run in runs} == {"pending"}

    assert orcheo.cancel(created["id"], reason="not wanted")["status"] == "cancelled"
    assert orcheo.run(created["id"])["error"] == "not wanted"
    with pytest.raises(DispatchError, match="404"):
        orcheo.history(created["id"])
    shown = orcheo.show(workflow_id)
    for word in (created["id"], "cancelled", "pending"):
        assert word in shown

    orcheo.archive(workflow_id)
    with pytest.raises(DispatchError, match="/triggers/webhook answered"):
        orcheo.fire_webhook(workflow_id, {"name": "too late"})


def test_api_makes_its_tables_and_workspace_on_an_empty_database(
    empty_database: Database, redis_url: str, tmp_path: Path
) -> None:
    with OrcheoApi(empty_database.dsn, redis_url, tmp_path) as api:
        assert [each["slug"] for each in api.workspaces()] == ["default"]
        pid = api.pid
        api.stop()
        assert api.pid is None
        assert api.start().pid not in (None, pid)
        assert len(api.workspaces()) == 1
    with psycopg.connect(empty_database.dsn) as connection:
        assert connection.execute("SELECT count(*) FROM workflow_runs").fetchone() == (0,)
