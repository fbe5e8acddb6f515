"""The runs of a trial: enough for longer than any trial takes; it ends by being stopped."""

from __future__ import annotations

import random
from uuid import UUID

from tests.faults.plan import Act, Pace, Plan, RunPlan

PACE = Pace(lease=4.0, heartbeat=0.5, quiet=0.0, spacing=0.0)
LONGEST_SECONDS = 6.0
"""Of a run: longer than a lease, shorter than a drain."""
_SHAPES = {"echo": 50, "wait": 30, "long": 6, "fail": 6, "cancelled while pending": 3, "cancelled while running": 5}
_TRIGGERS = {"webhook": 60, "cron": 10, "manual": 10, "cli": 20}


def make_load(seed: int, *, seconds: float, per_second: float) -> Plan:
    """Return runs that arrive at random times; the same arguments give the same plan. No fault is in it."""
    rng = random.Random(f"upgrade {seed}")
    times = sorted(rng.uniform(0.0, seconds) for _ in range(int(seconds * per_second)))
    return Plan(seed, PACE, (), tuple(_run(rng, round(at, 3)) for at in times))


def _run(rng: random.Random, at: float) -> RunPlan:
    act, seconds, cancel_after = Act.ECHO, 0.0, None
    match rng.choices(list(_SHAPES), weights=list(_SHAPES.values()))[0]:
        case "wait":
            act, seconds = Act.WAIT, rng.uniform(0.5, 2.5)
        case "long":
            act, seconds = Act.WAIT, rng.uniform(PACE.lease + 0.5, LONGEST_SECONDS)
        case "fail":
            act = Act.FAIL
        case "cancelled while pending":
            # Long in case it begins: the API's cancel reads and writes without a lock, and could overwrite an end.
            act, seconds, cancel_after = Act.WAIT, 4.0, rng.uniform(0.0, 0.1)
        case "cancelled while running":
            act, seconds, cancel_after = Act.WAIT, 4.0, rng.uniform(0.3, 2.0)
    run_id = str(UUID(int=rng.getrandbits(128), version=4))
    trigger = rng.choices(list(_TRIGGERS), weights=list(_TRIGGERS.values()))[0]
    return RunPlan(run_id, at, act, round(seconds, 3), cancel_after, trigger)
