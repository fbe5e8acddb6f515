"""Pending Orcheo runs execute in the background: the real API, the real command, our three processes."""

from __future__ import annotations

import base64
import json
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import redis
from redis.client import Monitor

from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from orcheo_dispatch.shared.broker.slots import RunSlots
from tests.support.database.databases import Database
from tests.support.database.runs import audit, everything, installation_of, ledger, one, read_run
from tests.support.orcheo.orcheo_releases import CRON_START_AT
from tests.support.orcheo.orcheo_stack import database_of, ended, stack_beside, start_afresh, upload
from tests.support.processes.processes import DEADLINE_SECONDS, Process, until

TERMINAL_SECONDS = 10.0
_END_OF_WIRE = "the end of the wire"
_KOMBU_BODY = re.compile(r'"body": "([^"]*)"')
_TOKEN = "only-for-tests-service-token"
_SLOTS = "orcheo:workspace:runs:"


@dataclass(frozen=True, slots=True)
class Stack:
    """The API, the ids of its workflows by name, and our processes."""

    orcheo: OrcheoApi
    database: Database
    redis: redis.Redis
    workflows: dict[str, str]
    beat: Process
    dispatcher: Process
    worker: Process


@pytest.fixture(scope="module")
def stack(orcheo: OrcheoApi) -> Iterator[Stack]:
    """One for all tests here: a worker imports Orcheo, which takes seconds."""
    start_afresh(orcheo)
    ours = stack_beside(orcheo)
    # All that can be logged is logged here, and searched for secrets when the session ends.
    ours.environment["ORCHEO_LOG_LEVEL"] = "DEBUG"
    ours.environment["ORCHEO_CRON_INTERVAL"] = "1"
    with (
        ours.command("worker", ORCHEO_SERVICE_TOKEN=_TOKEN) as worker,
        ours.running("dispatcher", ORCHEO_SERVICE_TOKEN=_TOKEN) as dispatcher,
        ours.running("beat", ORCHEO_SERVICE_TOKEN=_TOKEN) as beat,
        redis.Redis.from_url(orcheo.variables["REDIS_URL"]) as client,
    ):
        workflows = upload(orcheo, greet="greet", fail="fail", wait="wait", archived="greet", noisy="noisy")
        worker.saw("worker_started")
        yield Stack(orcheo, database_of(orcheo), client, workflows, beat, dispatcher, worker)


def test_webhook_succeeds_and_shows_its_output_and_trace(stack: Stack) -> None:
    fired = stack.orcheo.fire_webhook(stack.workflows["greet"], {"name": "Ada"})
    run = ended(stack.orcheo, fired)
    assert (run["status"], run["error"]) == ("succeeded", None)
    assert run["output_payload"]["final_state"]["node_results"] == {"start": {"greeting": "hello Ada"}}
    assert run["created_at"] < run["started_at"] < run["completed_at"]
    assert audit(read_run(stack.database, run["id"])) == ["run_created", "run_started", "run_succeeded"]
    history = stack.orcheo.history(run["id"])
    assert history["status"] == "completed"
    assert [step["payload"] for step in history["steps"]] == [
        {"start": {"node_results": {"start": {"greeting": "hello Ada"}}}},
        {"status": "completed"},
    ]
    assert {span["name"] for span in stack.orcheo.trace(run["id"])["spans"]} >= {"start"}
    shown = stack.orcheo.show(stack.workflows["greet"])
    assert any(run["id"] in line and "succeeded" in line for line in shown.splitlines())


def test_failing_workflow_fails_with_its_error(stack: Stack) -> None:
    run = ended(stack.orcheo, stack.orcheo.fire_webhook(stack.workflows["fail"], {"name": "Ada"}))
    assert (run["status"], run["error"]) == ("failed", "no luck, Ada")
    history = stack.orcheo.history(run["id"])
    assert (history["status"], history["error"]) == ("error", "no luck, Ada")
    shown = stack.orcheo.show(stack.workflows["fail"])
    assert any(run["id"] in line and "failed" in line for line in shown.splitlines())


def test_run_created_by_a_client_executes(stack: Stack) -> None:
    created = stack.orcheo.create_run(stack.workflows["greet"], {"body": {"name": "Bob"}})
    assert created["triggered_by"] == "cli"
    assert ended(stack.orcheo, created)["status"] == "succeeded"


def test_run_of_chatkit_is_never_touched(stack: Stack) -> None:
    chat = stack.orcheo.create_run(stack.workflows["greet"], {"body": {"name": "Eve"}}, triggered_by="chatkit")
    for name in ("Ada", "Bob"):
        ended(stack.orcheo, stack.orcheo.fire_webhook(stack.workflows["greet"], {"name": name}))
    assert stack.orcheo.run(chat["id"]) == chat
    assert everything(stack.database, "SELECT FROM orcheo_dispatch.dispatch WHERE run_id = %s", chat["id"]) == []


def test_run_is_cancelled_when_its_workflow_was_archived_meanwhile(stack: Stack) -> None:
    with _halted(stack.dispatcher):
        fired = stack.orcheo.fire_webhook(stack.workflows["archived"], {"name": "Ada"})
        stack.orcheo.archive(stack.workflows["archived"])
        assert stack.orcheo.run(fired["id"])["status"] == "pending"
    run = ended(stack.orcheo, fired)
    assert (run["status"], run["error"]) == ("cancelled", "Workflow is archived.")


def test_sixty_webhooks_are_terminal_soon_after_the_last(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    bodies = [{"name": f"Ada {number}"} for number in range(60)]
    ids = [run["id"] for run in stack.orcheo.fire_webhooks(stack.workflows["greet"], bodies)]
    fired_at = time.monotonic()
    until(lambda: _statuses(stack, ids) == {"succeeded"}, what="all are terminal", seconds=TERMINAL_SECONDS)
    with capsys.disabled():
        print(f"\n60 webhooks were terminal {time.monotonic() - fired_at:.2f} s after the last")


def test_cancelled_run_stops_and_gives_its_slot_back(stack: Stack) -> None:
    fired = stack.orcheo.fire_webhook(stack.workflows["wait"], {})
    until(lambda: stack.orcheo.run(fired["id"])["status"] == "running", what="the run begins")
    slots = RunSlots(stack.redis)
    taken = slots.in_use(fired["workspace_id"])
    stack.orcheo.cancel(fired["id"], reason="not wanted")
    until(lambda: slots.in_use(fired["workspace_id"]) == taken - 1, what="the slot comes back")
    run = stack.orcheo.run(fired["id"])
    assert (run["status"], run["error"]) == ("cancelled", "not wanted")
    assert stack.orcheo.history(fired["id"])["status"] == "cancelled"
    row = ledger(stack.database, fired["id"])
    assert (row["state"], row["outcome"]) == ("settled", "cancelled")


def test_inputs_and_secrets_stay_out_of_logs_ledger_and_redis(stack: Stack) -> None:
    marker, password = "xylophone", "hunter2"
    body = {"name": marker, "password": password, "database": f"postgresql://ada:{password}@db/x"}
    with Monitor(stack.redis.connection_pool) as monitor:  # type: ignore[no-untyped-call]
        for workflow in ("greet", "fail"):
            run = ended(stack.orcheo, stack.orcheo.fire_webhook(stack.workflows[workflow], body))
            assert marker in str(run["output_payload"] or run["error"])
        stack.redis.echo(_END_OF_WIRE)
        commands = iter(lambda: str(monitor.next_command()["command"]), f"ECHO {_END_OF_WIRE}")
        wire = "\n".join(map(_readable, commands))
    assert run["id"] in wire
    ledgers = everything(stack.database, "SELECT to_jsonb(d) AS row FROM orcheo_dispatch.dispatch AS d")
    stack.worker.saw(f"run_settled run_id={run['id']}")
    for process in (stack.beat, stack.dispatcher, stack.worker):
        assert marker not in process.log
        assert password not in process.log
    for secret in (marker, password):
        assert secret not in wire
        assert secret not in str(ledgers)


def test_workflow_that_says_all_it_knows_is_not_quoted(stack: Stack) -> None:
    marker, secret = "xylophone", "swordfish"
    key = {"name": "door_key", "provider": "door", "secret": secret, "access": "shared"}
    made = httpx.post(f"{stack.orcheo.url}/api/credentials", json=key)
    assert made.is_success, made.text
    run = ended(stack.orcheo, stack.orcheo.fire_webhook(stack.workflows["noisy"], {"name": marker}))
    # It had both to say, and said it.
    assert run["error"] is None
    assert run["output_payload"]["final_state"]["node_results"]["tap"]["value"] == f"{marker} and {secret}"
    stack.worker.saw(f"run_settled run_id={run['id']}")
    of_run = f"run_id={run['id']} workflow_id={stack.workflows['noisy']} fence="
    told = [line for line in stack.worker.lines if of_run in line]
    of_run += told[0].partition(of_run)[2].split()[0]
    for wanted in (
        "print_dropped {of_run} stream=stdout",
        "print_dropped {of_run} stream=stderr",
        "logged {of_run} logger=a.workflow at=",
        'logged {of_run} logger=orcheo.nodes.mine text="it is %s"',
        'logged {of_run} logger=orcheo.nodes.debug text="DebugNode %s: %s"',
        "python_warned {of_run} at=",
    ):
        assert any(wanted.format(of_run=of_run) in line for line in told), (wanted, told)
    for wanted in ("thread_failed thread=stray error=ValueError at=", 'text="Task exception was never retrieved"'):
        assert wanted in stack.worker.log
    assert secret not in stack.worker.log
    assert marker not in stack.worker.log


def test_due_cron_trigger_creates_a_run_that_executes(stack: Stack) -> None:
    # Once a day: at the minute that has just begun, or where a trigger cannot start in the past at the next one.
    now = datetime.now(UTC)
    due_at = (now if CRON_START_AT.is_here else now + timedelta(minutes=1, seconds=5)).replace(second=0, microsecond=0)
    configuration = {"expression": f"{due_at:%M %H} * * *", "timezone": "UTC"}
    if CRON_START_AT.is_here:
        configuration["start_at"] = due_at.isoformat()
    path = f"/api/workflows/{stack.workflows['greet']}/triggers/cron/config"
    answer = httpx.put(stack.orcheo.url + path, json=configuration)
    assert answer.is_success, answer.text
    stack.worker.saw("cron_dispatched runs=1", seconds=max(0.0, (due_at - now).total_seconds()) + DEADLINE_SECONDS)
    created = one(stack.database, "SELECT id FROM workflow_runs WHERE triggered_by = 'cron'")
    assert ended(stack.orcheo, created)["status"] == "succeeded"


def test_slots_and_queues_are_empty_when_all_is_done(stack: Stack) -> None:
    bodies = [{"name": "Ada"}] * 5
    for run in stack.orcheo.fire_webhooks(stack.workflows["greet"], bodies):
        ended(stack.orcheo, run)
    # Only runs of ChatKit, which are nobody's to end, hold a slot.
    live = "SELECT count(*) AS runs FROM workflow_runs WHERE status IN ('pending', 'running')"
    until(lambda: _slots_in_use(stack) == one(stack.database, live)["runs"], what="all other slots are back")
    queues = ("celery", installation_of(stack.database).runs)
    until(lambda: [stack.redis.llen(queue) for queue in queues] == [0, 0], what="the queues are empty")


def test_worker_and_check_know_all_names_and_columns_of_this_release(stack: Stack) -> None:
    with stack_beside(stack.orcheo).command("check", "--for", "worker", "--json") as check:
        check.exit_code()
        check.finish()
    grades = {finding["what"]: finding["grade"] for finding in json.loads(check.log)}
    assert {grades[subject] for subject in ("Orcheo's interfaces", "Orcheo's columns")} == {"ok"}
    assert not grades.keys() & {"checkpoints", "tables of checkpoints", "tables of traces"}
    fallbacks = {"checkpoints_by_langgraph", "checkpoints_not_stored", "traces_not_stored"}
    assert not [event for event in fallbacks if event in stack.worker.log]


@contextmanager
def _halted(process: Process) -> Iterator[None]:
    process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)


def _statuses(stack: Stack, run_ids: list[str]) -> set[str]:
    rows = everything(stack.database, "SELECT DISTINCT status FROM workflow_runs WHERE id = ANY (%s)", run_ids)
    return {row["status"] for row in rows}


def _slots_in_use(stack: Stack) -> int:
    slots = RunSlots(stack.redis)
    return sum(slots.in_use(key.decode().removeprefix(_SLOTS)) for key in stack.redis.scan_iter(f"{_SLOTS}*"))


def _readable(command: str) -> str:
    """Return a command to Redis with the body of a message in clear."""
    bodies = [base64.b64decode(body).decode() for body in _KOMBU_BODY.findall(command)]
    return " ".join([command, *bodies])
