"""Creates and cancels runs as Orcheo's API does, at the times of the plan, and goes on through every outage."""

from __future__ import annotations

import contextlib
import heapq
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import redis
from celery import Celery
from orcheo.models import WorkflowRun, WorkflowRunStatus

from tests.faults.plan import Plan, RunPlan
from tests.histories.operations import Verb
from tests.histories.recorder import Recorder

SLOTS_AT_FIRST = 1000
"""What the counter of slots begins with, so that one given back twice shows: Orcheo's counters end at nothing."""
HINT_TASK = "orcheo_backend.worker.tasks.execute_run"
_PUSHED = frozenset({"webhook", "cron", "manual", "listener"})
_RETRY_SECONDS = 0.05
_PUSH_TIMEOUT_SECONDS = 2.0

_INSERT = """
INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at, updated_at,
                           workspace_id)
VALUES (%(id)s, %(workflow)s, %(version)s, 'pending', %(by)s, %(payload)s, %(at)s, %(at)s, %(workspace)s)
ON CONFLICT (id) DO NOTHING
"""
_INSERT_WORKFLOW = """
INSERT INTO workflows (id, is_archived, payload, created_at, updated_at, workspace_id)
VALUES (%(workflow)s, false, '{}', now(), now(), %(workspace)s) ON CONFLICT (id) DO NOTHING
"""
_READ = "SELECT payload FROM workflow_runs WHERE id = %s"
_UPDATE = "UPDATE workflow_runs SET status = %s, payload = %s, updated_at = %s WHERE id = %s"


@dataclass(frozen=True, slots=True)
class Workflow:
    """What the runs are runs of."""

    workflow_id: str
    version_id: str
    workspace_id: str


class Workload:
    """The API's side of a trial, on links of its own that no fault strikes; the servers themselves are."""

    def __init__(
        self, plan: Plan, workflow: Workflow, *, dsn: str, broker: str, slots: str, calls: Path, only_pushed: bool
    ) -> None:
        """`calls` is the file in which each write, and each read before it, is recorded."""
        self.marker = f"inputs-of-seed-{plan.seed}-are-in-no-log"
        self.cancelled: dict[str, float] = {}
        """When the API cancelled a run."""
        self._plan = plan
        self._workflow = workflow
        self._dsn = dsn
        self._slots = redis.Redis.from_url(slots)
        self._counter = f"orcheo:workspace:runs:{workflow.workspace_id}"
        self._calls = Recorder(calls, "api")
        self._only_pushed = only_pushed
        self._connection: psycopg.Connection[Any] | None = None
        self._api = Celery("api", broker=broker, set_as_current=False)
        self._api.conf.update(
            broker_transport_options={"socket_timeout": _PUSH_TIMEOUT_SECONDS, "max_retries": 1},
            broker_connection_timeout=_PUSH_TIMEOUT_SECONDS,
        )
        self._slots.set(self._counter, SLOTS_AT_FIRST)

    def run(self, began: float, stopping: threading.Event) -> None:
        """Do all of it; `began` is `time.monotonic()` of the start. Ends early once `stopping` is set."""
        due: list[tuple[float, int, Callable[[], None]]] = []
        for number, run in enumerate(self._plan.runs):
            due.append((run.at, number, lambda run=run: self._create(run)))  # type: ignore[misc]
        heapq.heapify(due)
        with ThreadPoolExecutor(4) as self._pushes:
            while due and not stopping.is_set():
                at, number, act = due[0]
                if stopping.wait(max(0.0, began + at - time.monotonic())):
                    return
                heapq.heappop(due)
                act()
                run = self._plan.runs[number % len(self._plan.runs)]
                if number < len(self._plan.runs) and run.cancel_after is not None:
                    cancel = (time.monotonic() - began + run.cancel_after, number + len(self._plan.runs))
                    heapq.heappush(due, (*cancel, lambda run=run: self._cancel(run)))  # type: ignore[misc]

    @contextmanager
    def arriving(self, *, until_end: bool = True) -> Iterator[tuple[float, threading.Event]]:
        """Do all of it on a thread meanwhile; yield `time.monotonic()` of the start, and what stops it.

        Returns when the whole plan is carried out; without `until_end`, it is stopped at the end of the block. Raises
        what the thread has raised: a trial with fewer runs than planned would prove less than it says.
        """
        began, stopping = time.monotonic(), threading.Event()
        with ThreadPoolExecutor(1, "workload") as thread:
            work = thread.submit(self.run, began, stopping)
            try:
                yield began, stopping
            except BaseException:
                stopping.set()
                raise
            if not until_end:
                stopping.set()
            work.result()

    def slots_leaked(self) -> int:
        """Return by how much the counter of slots is off: above nothing leaked, below given back twice."""
        count: Any = self._slots.get(self._counter)
        return int(count or 0) - SLOTS_AT_FIRST

    def close(self) -> None:
        """Close the connections."""
        self._slots.close()
        self._api.close()
        self._calls.close()
        if self._connection is not None:
            self._connection.close()

    def _create(self, plan: RunPlan) -> None:
        trigger = "webhook" if self._only_pushed else plan.triggered_by
        run = WorkflowRun(
            id=UUID(plan.run_id),
            workflow_id=UUID(self._workflow.workflow_id),
            workflow_version_id=UUID(self._workflow.version_id),
            triggered_by=trigger,
            input_payload={"do": plan.act.value, "seconds": plan.seconds, "marker": self.marker},
            workspace_id=self._workflow.workspace_id,
        )
        run.record_event(actor=trigger, action="run_created")
        row = {
            "id": plan.run_id,
            "workflow": self._workflow.workflow_id,
            "version": self._workflow.version_id,
            "by": trigger,
            "payload": json.dumps(run.model_dump(mode="json")),
            "at": run.updated_at,
            "workspace": self._workflow.workspace_id,
        }
        self._slots.incr(self._counter)
        self._persistently(lambda connection: connection.execute(_INSERT_WORKFLOW, row))
        with self._calls.call(Verb.CREATE, [(plan.run_id,)]) as call:
            self._persistently(lambda connection: connection.execute(_INSERT, row))
            call.answer = True
        if trigger in _PUSHED:
            self._pushes.submit(self._push, plan.run_id)

    def _push(self, run_id: str) -> None:
        """Push as the API does: where Redis is unavailable, the run is left as it is."""
        headers = {"workspace_id": self._workflow.workspace_id}
        with contextlib.suppress(Exception):
            self._api.send_task(HINT_TASK, args=(run_id,), headers=headers, queue="celery", retry=False)

    def _cancel(self, plan: RunPlan) -> None:
        """Cancel as the API does: read, change, write; without a lock, and without a look at what happened between."""
        tried = False

        def read_and_write(connection: psycopg.Connection[Any]) -> None:
            nonlocal tried
            with self._calls.call(Verb.READ, [(plan.run_id,)]) as call:
                payload = connection.execute(_READ, (plan.run_id,)).fetchone()
                assert payload is not None
                run = WorkflowRun.model_validate(payload[0])
                call.answer = run.status.value
            if run.status.is_terminal:
                if tried and run.status is WorkflowRunStatus.CANCELLED:
                    # By the attempt before, whose answer was lost.
                    self.cancelled[plan.run_id] = time.time()
                return
            tried = True
            run.mark_cancelled(actor="user", reason="not wanted any more")
            written = (run.status.value, json.dumps(run.model_dump(mode="json")), run.updated_at, plan.run_id)
            with self._calls.call(Verb.CANCEL, [(plan.run_id,)]) as call:
                connection.execute(_UPDATE, written)
                call.answer = True
            self.cancelled[plan.run_id] = time.time()

        self._persistently(read_and_write)

    def _persistently[T](self, act: Callable[[psycopg.Connection[Any]], T]) -> T:
        while True:
            try:
                if self._connection is None:
                    self._connection = psycopg.connect(self._dsn, autocommit=True)
                return act(self._connection)
            except psycopg.OperationalError:
                if self._connection is not None:
                    self._connection.close()
                self._connection = None
                time.sleep(_RETRY_SECONDS)
