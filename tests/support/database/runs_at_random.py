"""Runs in any combination of states, likely or not."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from tests.support.database.comparing import Which
from tests.support.database.run_states import (
    CHATKIT,
    CREATED,
    LIVE,
    OTHER,
    OUTCOMES,
    STARTED_BY_WORKER,
    STATUSES,
    US,
    WORKFLOWS,
    WORKSPACES,
    Entry,
    Retry,
    State,
    Trace,
)


def at_random(random: Random, count: int, states: Sequence[str] = ("settled",) * 3 + LIVE) -> list[State]:
    """Return runs in any combination of states, likely or not; `states` are those of the ledger."""
    return [_run_at_random(random, f"r{n:03}", states) for n in range(count)]


def _run_at_random(random: Random, run_id: str, states: Sequence[str]) -> State:
    status = random.choice((*STATUSES, None))
    entry = _entry_at_random(random, states) if status is None or random.random() < 0.8 else None
    waits = entry is not None and random.random() < 0.4
    asks = entry is not None and random.random() < 0.4
    whose: dict[str, Any] = {
        "workflow": random.choice(WORKFLOWS),
        "workspace": random.choice(WORKSPACES),
        "label": random.choice(("webhook", "other")),
        "entry": entry,
        "retry": Retry(random.randint(0, 2), random.choice((None, -50, 50)), random.choice((None, "b")))
        if waits
        else None,
        "question": random.choice((1, 2)) if asks else None,
        "checkpoint": random.choice((None, "k")),
    }
    if status is None:
        return State(run_id, None, **whose)
    more = random.choice(((), (STARTED_BY_WORKER,)))
    return State(
        run_id,
        status,
        **whose,
        created=random.choice((5, 50, 500)),
        updated=random.choice((5, 50, 500)),
        started=random.choice((None, "then")),
        completed=random.choice((None, "then")),
        error=random.choice((None, "boom")),
        named=random.choice((None, "a", whose["workspace"])),
        source=random.choice((None, None, CHATKIT)),
        audit=(random.choice((f"api {CREATED}", f"{whose['label']} {CREATED}", "api other {}")), *more),
        trace=random.choice((None, Trace("running", steps=random.choice(((), ("1", "2")))), Trace("error", "x", 5))),
    )


def _entry_at_random(random: Random, states: Sequence[str]) -> Entry:
    state = random.choice(states)
    attempts = random.randint(0, 3)
    settled = state == "settled"
    return Entry(
        state,
        random.choice((*OUTCOMES, "requeued", "requeued", "failed")) if settled else None,
        fence=random.choice((1, 2)),
        slot=random.choice(("none", "held", "due", "returned")),
        reason=random.choice((None, "ValueError", "TypeError", "by hand", "run is gone")),
        attempts=attempts,
        refunded=random.randint(0, attempts),
        settled=random.choice((5, 50, 500, 100_000)) if settled else None,
        begun=20 if state == "running" or random.random() < 0.5 else None,
        heartbeat=10 if state == "running" else None,
        lease=None if settled else random.choice((-20, 20)),
        worker=random.choice((US, OTHER)) if state == "running" else None,
        suspect=random.random() < 0.2,
        queue=random.choice((None, None, "gpu")),
    )


def which_at_random(random: Random, states: Sequence[State]) -> Which:
    """Return a filter of these runs that leaves some of them."""
    ids = [state.id for state in states]
    chosen = random.choice((None, random.sample(ids, len(ids) // 2)))
    return Which(random.choice(((), random.sample(ids, len(ids) // 4))), chosen, random.random() < 0.3)
