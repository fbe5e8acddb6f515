"""What happens in a trial, as pure functions of its seed: which faults strike when, and which runs are created.

The same seed, size and pace give the same plan, run ids included.
"""

from __future__ import annotations

import random
from itertools import chain
from uuid import UUID

from tests.faults.plan import BEATS, BOUNDED, DISPATCHERS, FULL, WORKERS, Act, Fault, Kind, Pace, Plan, RunPlan

_FIRST_FAULT_SECONDS = 2.0
_APART_SECONDS = 0.2
_BURST_SHARE = 0.35
_BURST_SECONDS = 0.4

# How long each lasts, in leases: what must outlast a lease does, what must not does not.
_LEASES: dict[Kind, tuple[float, float]] = {
    Kind.KILL_WORKER: (0, 0),
    Kind.KILL_DISPATCHER: (0, 0),
    Kind.KILL_BEAT: (0, 0),
    Kind.PAUSE_WORKER: (1.3, 1.8),
    Kind.PAUSE_DISPATCHER: (0.8, 1.5),
    Kind.PAUSE_BEAT: (0.5, 1.2),
    Kind.DRAIN_WORKER: (0, 0),
    Kind.FLUSH: (0, 0),
    Kind.REDIS_RESTART: (0.1, 0.8),
    Kind.REDIS_FULL: (0.6, 1.0),
    Kind.REDIS_DROP: (0, 0),
    Kind.REDIS_DELAY: (0.5, 1.0),
    Kind.REDIS_STALL: (0.5, 1.3),
    Kind.REDIS_HALF_CLOSE: (0.3, 0.8),
    Kind.POSTGRES_RESTART: (0.1, 0.4),
    Kind.POSTGRES_DROP: (0, 0),
    Kind.POSTGRES_DELAY: (0.4, 0.8),
    Kind.POSTGRES_STALL: (0.4, 1.2),
    Kind.POSTGRES_HALF_CLOSE: (0.3, 0.8),
    Kind.CUT_OFF_WORKER: (1.5, 2.0),
    Kind.SLOTS_DROP: (0, 0),
    Kind.SLOTS_STALL: (0.5, 1.0),
}
_TARGETS = {
    **dict.fromkeys((Kind.KILL_WORKER, Kind.PAUSE_WORKER, Kind.DRAIN_WORKER, Kind.CUT_OFF_WORKER), WORKERS),
    **dict.fromkeys((Kind.KILL_DISPATCHER, Kind.PAUSE_DISPATCHER), DISPATCHERS),
    **dict.fromkeys((Kind.KILL_BEAT, Kind.PAUSE_BEAT), BEATS),
}
# Two faults of a group never overlap: each would undo the other.
_GROUPS = (
    {Kind.FLUSH, Kind.REDIS_RESTART, Kind.REDIS_FULL},
    {Kind.REDIS_DROP, Kind.REDIS_DELAY, Kind.REDIS_STALL, Kind.REDIS_HALF_CLOSE},
    {
        *(Kind.POSTGRES_DROP, Kind.POSTGRES_DELAY, Kind.POSTGRES_STALL, Kind.POSTGRES_HALF_CLOSE),
        Kind.CUT_OFF_WORKER,
    },
    {Kind.SLOTS_DROP, Kind.SLOTS_STALL},
    {Kind.PAUSE_WORKER, Kind.DRAIN_WORKER, Kind.KILL_WORKER},
    {Kind.PAUSE_DISPATCHER, Kind.KILL_DISPATCHER},
    {Kind.PAUSE_BEAT, Kind.KILL_BEAT},
)


def make_plan(seed: int, *, runs: int, seconds: float, pace: Pace = FULL) -> Plan:
    """Return the plan of a seed: every kind of fault at least once, and more of them until `seconds` are full."""
    faults = _faults(random.Random(f"faults {seed}"), seconds, pace)
    last = max(fault.ends_at for fault in faults)
    return Plan(seed, pace, faults, _runs(random.Random(f"runs {seed}"), runs, last, faults, pace))


def _faults(rng: random.Random, seconds: float, pace: Pace) -> tuple[Fault, ...]:
    placed: list[Fault] = []
    # Every kind once, the bounded ones spread over the others; after that, whatever comes.
    others = [kind for kind in Kind if kind not in BOUNDED]
    bounded = list(BOUNDED)
    rng.shuffle(others)
    rng.shuffle(bounded)
    size = -(-len(others) // (len(bounded) + 1))
    groups = [others[start : start + size] for start in range(0, len(others), size)]
    first_round = list(chain.from_iterable([*group, *bounded[n : n + 1]] for n, group in enumerate(groups)))
    cursor = _FIRST_FAULT_SECONDS
    for kind in first_round:
        cursor = _place(rng, kind, cursor, placed, pace)
    while cursor < seconds:
        cursor = _place(rng, rng.choice(list(Kind)), cursor, placed, pace)
    return tuple(placed)


def _place(rng: random.Random, kind: Kind, cursor: float, placed: list[Fault], pace: Pace) -> float:
    """Append a fault at `cursor` or as soon as it may be; return the cursor for the next."""
    lasts = round(rng.uniform(*_LEASES[kind]) * pace.lease, 2)
    if kind in BOUNDED:
        rivals = placed
    else:
        rivals = [fault for fault in placed if any({kind, fault.kind} <= group for group in _GROUPS)]
    free = max((fault.ends_at + _APART_SECONDS for fault in rivals), default=0.0)
    at = round(max(cursor + rng.uniform(0.2, 1.8) * pace.spacing, free), 2)
    fault = Fault(at, kind, rng.randrange(_TARGETS.get(kind, 1)), lasts)
    placed.append(fault)
    return fault.ends_at + pace.quiet if kind in BOUNDED else at


def _runs(rng: random.Random, count: int, last: float, faults: tuple[Fault, ...], pace: Pace) -> tuple[RunPlan, ...]:
    """Return the runs in the order of their creation: some in bursts just before faults, so that they meet a queue."""
    bursts = [fault.at for fault in faults if fault.kind in {*BOUNDED, Kind.REDIS_RESTART, Kind.KILL_DISPATCHER}]
    in_bursts = int(count * _BURST_SHARE)
    times = [max(0.0, rng.choice(bursts) - rng.uniform(0.0, _BURST_SECONDS)) for _ in range(in_bursts)]
    times += [rng.uniform(0.0, last) for _ in range(count - in_bursts)]
    planned = zip(times, _shapes(rng, count, in_bursts), strict=True)
    return tuple(_run(rng, round(at, 3), shape, pace) for at, shape in sorted(planned))


_SHAPES = {"wait": 12, "long": 6, "fail": 6, "block": 4, "pending": 4, "running": 8, "swallow": 2, "exit": 1, "odd": 1}
_TRIGGERS = {"webhook": 60, "cron": 8, "manual": 8, "listener": 4, "cli": 8, "api": 6, "canvas": 6}


def _shapes(rng: random.Random, count: int, in_bursts: int) -> list[str]:
    """Return what the runs are, in shares of a hundred and each at least once; the rest are short.

    Of those that take a while every other one is in a burst: a fault is to meet runs under execution.
    """
    shapes = [name for name, share in _SHAPES.items() for _ in range(max(1, count * share // 100))]
    shapes += ["short"] * (count - len(shapes))
    rng.shuffle(shapes)
    lasting = [shape for shape in shapes if shape in {"wait", "long"}][: in_bursts // 2]
    first = lasting[: len(lasting) // 2 + 1]
    for shape in first:
        shapes.remove(shape)
    return first + shapes


def _run(rng: random.Random, at: float, shape: str, pace: Pace) -> RunPlan:
    act, seconds, cancel_after = Act.ECHO, 0.0, None
    match shape:
        case "wait":
            act, seconds = Act.WAIT, rng.uniform(1.0, 3.0)
        case "long":
            act, seconds = Act.WAIT, rng.uniform(1.5, 2.0) * pace.lease
        case "pending":
            cancel_after = rng.uniform(0.0, 0.1)
        case "running":
            act, seconds, cancel_after = Act.WAIT, 4.0, rng.uniform(0.3, 2.0)
        case "block":
            # Now and then the whole loop of a worker stands still for longer than a lease.
            act, seconds = Act.BLOCK, (1.25 * pace.lease if rng.random() < 0.2 else 0.5)
        case "swallow":
            act, seconds, cancel_after = Act.SWALLOW, 4.0, rng.uniform(0.5, 1.5)
        case "fail" | "exit" | "odd":
            act = Act(shape)
    trigger = rng.choices(list(_TRIGGERS), weights=list(_TRIGGERS.values()))[0]
    run_id = str(UUID(int=rng.getrandbits(128), version=4))
    after = None if cancel_after is None else round(cancel_after, 3)
    return RunPlan(run_id, at, act, round(seconds, 3), after, trigger)
