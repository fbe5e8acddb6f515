"""What commands print with `--json`, on a database with runs in every state, is what their schemas say."""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import uuid4

import pytest

from orcheo_dispatch.ops.sandbox.child import free_port
from orcheo_dispatch.ops.schemas import names
from orcheo_dispatch.shared.ledger.model import Outcome, ProcessKind
from orcheo_dispatch.shared.ledger.processes import Process
from orcheo_dispatch.shared.ledger.runs import Ending
from tests.support.database.databases import Database
from tests.support.database.runs import WORKFLOW_ID, claim_all, execute, insert_runs, store_of
from tests.support.processes.processes import Stack, until
from tests.support.schemas import assert_valid
from tests.support.servers.inbox import webhook

# A line for each schema: the command and its arguments. RUN, ENDED and WAITING are runs, WORKFLOW a workflow.
_CASES: dict[str, list[tuple[str, ...]]] = {
    "adopt": [("adopt", "--older-than", "1m"), ("adopt", "--repair", "--yes", "--older-than", "1m")],
    "alerts": [("alerts",)],
    "alerts-test": [("alerts", "test")],
    "answer": [
        ("answer", "--json", "1", "--workflow", "WORKFLOW", "--dry-run"),
        ("answer", "WAITING", "--json", "1"),
        ("answer", "unknown", "--json", "1"),
    ],
    "cancel": [("cancel", "RUN"), ("cancel", "unknown")],
    "check": [("check",)],
    "fail": [("fail", "RUN", "--reason", "by a test"), ("fail", "ENDED", "--reason", "by a test")],
    "health": [("health", "--url", "http://127.0.0.1:1")],
    "isolate": [("isolate", "WORKFLOW", "--for", "1h"), ("isolate", "WORKFLOW"), ("isolate", "WORKFLOW", "--clear")],
    "maintenance": [("maintenance", "on", "--why", "x"), ("maintenance", "off")],
    "migrate": [("migrate",)],
    "operations": [("operations",)],
    "pause": [("pause", "--workspace", "w", "--why", "x", "--for", "1h"), ("pause", "--all", "--why", "x")],
    "policy-clear": [("policy", "clear", "--workspace", "w"), ("policy", "clear", "--all")],
    "policy-explain": [("policy", "explain", "WORKFLOW")],
    "policy-list": [("policy", "list")],
    "policy-set": [("policy", "set", "--all", "--rate", "10/1m", "--queue", "gpu", "--timeout", "15m")],
    "poll": [("poll",)],
    "requeue": [("requeue", "ENDED"), ("requeue", "--dead", "--yes"), ("requeue", "RUN", "--dry-run")],
    "run": [("run", "RUN"), ("run", "ENDED", "--error")],
    "runs": [("runs",), ("runs", "--status", "failed")],
    "runs-pending": [("runs", "--pending")],
    "runs-unclaimed": [("runs", "--unclaimed")],
    "status": [("status",)],
    "unpause": [("unpause", "--workspace", "w"), ("unpause", "--all")],
}


def _printed(stack: Stack, *arguments: str) -> Any:
    """Return what a command prints to stdout, among the log lines of stderr; it may find something that is wrong."""
    # By --json it takes the answer.
    option = "--output-json" if arguments[0] == "answer" else "--json"
    with stack.command(*arguments, option) as process:
        assert process.exit_code() in {0, 1, 3}, process.log
        process.finish()
        assert "Traceback" not in process.log
        begins = re.search(r"^(\{|\[|\[\])$", process.log, re.MULTILINE)
        assert begins is not None, process.log
        return json.JSONDecoder().raw_decode(process.log, begins.start())[0]


def _stock(database: Database) -> dict[str, str]:
    """Leave runs in every state; return one that has not ended, one that has, one that waits, and their workflow."""
    runs = insert_runs(database, 9, inputs={"do": "nothing"})
    insert_runs(database, 2, triggered_by="nightly")
    (left,) = insert_runs(database)
    endings = [
        Ending.succeeded("{}"),
        Ending.failed("x", reason="ValueError"),
        Ending.failed("x", reason="timed_out", outcome=Outcome.TIMED_OUT),
        Ending.requeued("drained"),
        Ending.waiting("{}", checkpoint_id="c", interrupts=1, keeps_slot=False),
    ]
    with store_of(database) as (store, engine):
        for kind in ProcessKind:
            Process(kind, concurrency=2, triggers=("webhook",)).seen(engine)
        claims = claim_all(store, 8)
        store.mark_published(claims[:7])
        for claim in claims[:6]:
            store.begin(claim, worker_id=uuid4(), lease=30)
        for claim, ending in zip(claims[:5], endings, strict=True):
            store.settle(claim, ending)
    execute(
        database,
        "UPDATE workflow_runs SET created_at = now() - interval '10 min', updated_at = now() - interval '10 min'"
        " WHERE status = 'pending'",
    )
    # Left by the stock worker: nothing of it is in the ledger.
    execute(database, "UPDATE workflow_runs SET status = 'running' WHERE id = %s", left)
    execute(
        database,
        "INSERT INTO orcheo_dispatch.retry (run_id, retries, next_at) VALUES (%s, 1, now() + interval '1 h')",
        runs[2],
    )
    execute(database, "INSERT INTO orcheo_dispatch.policy (workspace_id, paused, why) VALUES ('w', true, 'x')")
    execute(database, "INSERT INTO orcheo_dispatch.alert (name, told_at) VALUES ('OrcheoNoWorker', now())")
    return {"RUN": runs[8], "ENDED": runs[1], "WAITING": runs[4], "WORKFLOW": WORKFLOW_ID}


def test_each_schema_is_tried() -> None:
    """A new schema belongs into the table above."""
    assert sorted(_CASES) == names()


@pytest.mark.parametrize("name", sorted(_CASES))
def test_command_prints_what_its_schema_says(database: Database, stack: Stack, name: str) -> None:
    chosen = _stock(database)
    documents = []
    with webhook() as target:
        # One target that accepts messages, and one that does not answer.
        stack.environment["ORCHEO_ALERTS_URLS"] = f"{target.url()} json://127.0.0.1:1"
        for arguments in _CASES[name]:
            documents.append(_printed(stack, *(chosen.get(argument, argument) for argument in arguments)))
            assert_valid(name, documents[-1])
    # An empty list is valid under any schema.
    assert any(documents)


def test_health_of_a_process_is_what_its_schema_says(stack: Stack) -> None:
    port = free_port()
    with stack.running("dispatcher", ORCHEO_HEALTH_PORT=str(port)):
        document = until(
            lambda: (found := _printed(stack, "health", "--port", str(port)))[-1]["ok"] and found, what="it is ready"
        )
    assert [each["name"] for each in document] == ["live", "ready"]
    assert_valid("health", document)
