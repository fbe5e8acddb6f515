"""The figures of `orcheo-dispatch status`, of metrics and of alerts are what models in Python count."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from orcheo_dispatch.shared.alerts.statements import ALERT_FAILING
from orcheo_dispatch.shared.ledger.status import DISPATCH, PENDING, SLOTS_DUE, read_status
from tests.support.database.comparing import RolledBack
from tests.support.database.databases import Database
from tests.support.database.look_model import DEFAULT
from tests.support.database.rows import add_process
from tests.support.database.run_states import OTHER, US, write
from tests.support.database.runs import store_of
from tests.support.database.runs_at_random import at_random

_ENDS = ("succeeded", "failed", "timed_out", "cancelled")
"""Ends that say something of the workflow."""


@pytest.mark.parametrize("seed", range(40))
def test_figures_of_runs_are_those_of_the_model(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    states = at_random(random, random.choice((0, 1, 2, 3, 5, 8, 60)))
    states = [replace(each, status="pending") if each.status and random.random() < 0.5 else each for each in states]
    pending = [state for state in states if state.status == "pending"]
    ours = [state for state in pending if DEFAULT.pending(state)]
    entries = [state.entry for state in states if state.entry]
    live = Counter(entry.state for entry in entries)
    recent = [
        entry for entry in entries if entry.settled is not None and entry.settled < 15 * 60 and entry.outcome in _ENDS
    ]
    with rolled_back() as connection:
        write(connection, states)
        found = connection.execute(PENDING).one()
        assert (found.pending, found.pending_others) == (len(ours), len(pending) - len(ours))
        assert found.late == sum(state.created > 300 for state in ours)
        assert found.oldest == max((state.created for state in ours), default=0)
        stuck = sum(state.stuck for state in states)
        counts = (live["claimed"], live["published"], live["running"], stuck)
        assert tuple(connection.execute(DISPATCH).one()) == counts
        assert connection.scalar(SLOTS_DUE) == sum(entry.slot == "due" for entry in entries)
        failing = connection.execute(ALERT_FAILING).one()
        failed = sum(entry.outcome in ("failed", "timed_out") for entry in recent)
        assert (failing.ended, failing.failed) == (len(recent), failed)


def test_status_lists_the_processes_that_are_alive(database: Database) -> None:
    with store_of(database) as (_, engine):
        with engine.begin() as connection:
            for process, seen in ((US, 5), (OTHER, 60)):
                add_process(connection, "worker", id=process, seen=seen)
        assert [process.id for process in read_status(engine).processes] == [US]
