"""Explain to an operator why a run makes no progress, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orcheo_dispatch.ops.runs.moments import ago, duration
from orcheo_dispatch.shared.ledger.operators.waits import Wait
from orcheo_dispatch.shared.ledger.status import LATE_SECONDS
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.settings.policies import LostRuns


@dataclass(frozen=True, slots=True)
class Fleet:
    """Live processes, the workers' running runs and capacity, and the number of claims."""

    dispatchers: int
    workers: int
    places: int
    taken: int
    queued: int
    """Claims that wait to begin."""
    of_workflow: int
    """Runs of the same workflow that are claimed, published or running."""
    of_workspace: int
    """The same of its workspace; 0 outside one."""


def hints_for(
    run: Any, worker_seen_ago: float | None, fleet: Fleet, settings: Settings, wait: Wait | None = None
) -> list[str]:
    """Return the hints on a run, in order of weight; none for a run that is well or over.

    `run` has the columns of the run and of its row in the ledger; `worker_seen_ago` is None if the worker is gone;
    `wait` says why a pending run waits.
    """
    return list(_hints(run, worker_seen_ago, fleet, settings, wait))


def _hints(
    run: Any, worker_seen_ago: float | None, fleet: Fleet, settings: Settings, wait: Wait | None
) -> Iterator[str]:
    if run.status is None:
        yield "the API has deleted this run: only its row in the ledger is left"
    elif run.status == "pending":
        yield from _of_pending(run, fleet, settings, wait)
    elif run.status == "running":
        yield from _of_running(run, worker_seen_ago, fleet, settings)
    elif run.state == "running":
        yield f"the API says {run.status}: its worker stops it at the next heartbeat"
    if run.next_attempt_at is not None:
        when = f"in {duration(run.retry_in)}" if run.retry_in > 0 else "at the next poll"
        yield f"it is tried again {when}, by its workflow's retry policy; 'orcheo-dispatch fail' prevents that"
    if run.slot == "due":
        yield "its run slot is due: a dispatcher returns it within a minute, once the Redis of the slots answers"


def _of_pending(run: Any, fleet: Fleet, settings: Settings, wait: Wait | None) -> Iterator[str]:
    if not run.ours:
        yield (
            f"no dispatcher claims it: ChatKit created it, or {run.triggered_by!r} is not among the "
            "ORCHEO_DISPATCH_TRIGGERS of any dispatcher, and no push of the API was seen"
        )
        return
    if run.late:
        yield f"late: pending for {duration(run.age)}, the promise is {duration(LATE_SECONDS)}"
    if not fleet.dispatchers:
        yield "no dispatcher is alive: start one"
    # Workers of the default queue are the subject of the hints below.
    if wait is not None and wait.held_back and (wait.reason, wait.queue) != ("no_worker", "default"):
        yield wait.sentence
    elif run.state in ("claimed", "published"):
        yield from _of_queued(run, fleet)
    elif limit := _limit_reached(fleet, settings):
        yield f"it waits for others to end: {limit}"
    elif fleet.queued >= settings.max_queued:
        yield (
            f"it waits for room: {fleet.queued} runs are claimed already, "
            f"ORCHEO_DISPATCH_MAX_QUEUED is {settings.max_queued}"
        )
        yield from _of_workers(fleet)
    elif fleet.dispatchers and run.age > 2 * settings.poll_interval + 1:
        yield (
            "a dispatcher is alive and has not claimed it: its log says why "
            "(broker_unavailable, database_unavailable, poll_failed)"
        )


def _limit_reached(fleet: Fleet, settings: Settings) -> str | None:
    for what, runs, most in (
        ("WORKFLOW", fleet.of_workflow, settings.max_running_per_workflow),
        ("WORKSPACE", fleet.of_workspace, settings.max_running_per_workspace),
    ):
        if most is not None and runs >= most:
            of = what.lower()
            return f"{runs} runs of its {of} are claimed or running, ORCHEO_DISPATCH_MAX_RUNNING_PER_{what} is {most}"
    return None


def _of_queued(run: Any, fleet: Fleet) -> Iterator[str]:
    if run.state == "claimed":
        yield (
            "claimed, and not marked as published: a poll does that after a second; if it stays so, Redis may be"
            " unavailable: look for broker_unavailable in the log"
        )
    elif run.reason:
        yield f"when its lease had expired its message was found {run.reason}"
    if run.lease_left is not None and run.lease_left < 0:
        yield "its dispatch lease has expired: the next poll looks for its message, and claims it again if it is lost"
    yield from _of_workers(fleet)


def _of_workers(fleet: Fleet) -> Iterator[str]:
    if not fleet.workers:
        yield "no worker is alive: start one"
    elif fleet.taken >= fleet.places:
        yield f"all {fleet.places} places of the {fleet.workers} workers that are alive are taken: start more"


def _of_running(run: Any, worker_seen_ago: float | None, fleet: Fleet, settings: Settings) -> Iterator[str]:
    if run.interrupts:
        yield (
            f"it waits for {run.interrupts} answer{'s' if run.interrupts > 1 else ''}: "
            f"'orcheo-dispatch answer {run.run_id} --json ...', 'cancel' or 'fail'"
        )
        return
    if run.state != "running":
        yield (
            "another process began it (Orcheo's own worker, or the API itself), and nothing here monitors it: "
            f"if it is dead, 'orcheo-dispatch requeue {run.run_id}' or 'fail {run.run_id}'"
        )
        return
    if not run.stuck:
        return
    seen = "is gone" if worker_seen_ago is None else f"was seen {ago(worker_seen_ago)}"
    yield f"stuck: its lease expired {duration(-run.lease_left)} ago; its worker {seen}" + (
        ", so it executes other runs" if run.worker_alive else ""
    )
    if settings.lost_runs is LostRuns.HOLD:
        yield (
            "ORCHEO_DISPATCH_LOST_RUNS is hold: decide by 'orcheo-dispatch requeue', 'fail' or 'cancel' "
            f"and {run.run_id}"
        )
    elif not fleet.dispatchers:
        yield "no dispatcher is alive to settle it: start one"
    else:
        yield f"a dispatcher settles it at its next poll: ORCHEO_DISPATCH_LOST_RUNS is {settings.lost_runs.value}"
