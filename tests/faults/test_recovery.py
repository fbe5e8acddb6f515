"""When a run counts as recovered."""

from __future__ import annotations

import pytest

from tests.faults.history import History, Move, Status
from tests.faults.injector import Injected
from tests.faults.plan import Kind
from tests.faults.recovery import NEVER, recovery_of

FLUSH = Injected(Kind.FLUSH, 100.0, 100.0, None)
OUTAGE = Injected(Kind.POSTGRES_RESTART, 100.0, 103.0, None)
PAUSE = Injected(Kind.PAUSE_WORKER, 100.0, 106.0, 1)


def _move(at: float, sign: str, *, fence: int = 1, outcome: str | None = None) -> Move:
    state = {"beat": "running", "waiting": "published"}.get(sign, sign)
    return Move(at, "run", fence, sign, state, outcome, None)


def _history(*moves: Move, ended_at: float | None = None) -> History:
    statuses = [Status(90.0, "run", None, "pending")]
    if ended_at is not None:
        statuses.append(Status(ended_at, "run", "running", "succeeded"))
    return History(list(moves), statuses)


BEFORE = (_move(95.0, "claimed"), _move(96.0, "published"))


@pytest.mark.parametrize(
    ("fault", "moves", "ended_at", "seconds"),
    [
        (FLUSH, (_move(104.0, "settled", outcome="released"), _move(104.5, "claimed", fence=2)), None, 4.5),
        (FLUSH, (_move(102.0, "waiting"),), None, 2.0),
        (FLUSH, (_move(101.0, "published"), _move(103.0, "running")), None, 3.0),
        (FLUSH, (), 107.0, 7.0),
        (FLUSH, (_move(105.0, "settled", outcome="lost"),), None, 5.0),
        (FLUSH, (_move(105.0, "settled", outcome="requeued"),), None, NEVER),
        (FLUSH, (_move(100.01, "beat"),), None, NEVER),
        (FLUSH, (), None, NEVER),
        (OUTAGE, (_move(102.0, "running"), _move(104.0, "beat")), None, 1.0),
        (OUTAGE, (), 102.0, 0.0),
        (PAUSE, (_move(104.2, "settled", outcome="lost"),), 104.2, 4.2),
    ],
)
def test_recovery_takes_until_first_sign_of_life(
    fault: Injected, moves: tuple[Move, ...], ended_at: float | None, seconds: float
) -> None:
    assert recovery_of(fault, _history(*BEFORE, *moves, ended_at=ended_at)).seconds == pytest.approx(seconds)


def test_run_that_had_ended_before_is_not_harmed() -> None:
    assert recovery_of(FLUSH, _history(*BEFORE, ended_at=99.0)).harmed == 0
