"""The short form of `make neighbours`: a few bad neighbours at a time, of every kind. Delays are left to the long form.

Under `adaptive` the second run of an offender harms nobody, under `process` the first one does not either.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.ground import Ground, ground
from tests.neighbours.cases import CASES, Case
from tests.neighbours.measure import Harm
from tests.neighbours.together import named
from tests.neighbours.trial import Trial

_CODE = (
    named("os._exit(3)", "80 MB output", "mute error", "200,000 prints"),
    named("segmentation fault", "block", "json replaced", "lying output"),
    named("descriptors closed", "threads", "all tasks cancelled", "60 KB error", "fork"),
    named("loop stopped", "signals ignored", "clock stopped", "sockets"),
    named("memory", "SIGSTOP", "block later", "cancellation swallowed", "SIGTERM to its group"),
)
_OTHERS = (
    named(
        "row of a pending run locked",
        "row of a running run locked",
        "ledger row of a running run locked",
        "created_at = infinity",
        'runnable_config = "text"',
        "forged messages",
    ),
    named("change of a run refused (P0001)", "entry in the ledger refused (08006)", "huge message"),
    named("change in the ledger refused (57014)", "100 workspaces"),
)


@pytest.fixture(scope="module")
def shared() -> Iterator[Ground]:
    """Servers for all trials."""
    with ground(orcheo=False) as made:
        yield made


def _harm_of(found: Harm) -> tuple[int, int, int, int]:
    return found.failed, found.unfinished, found.attempts, found.leaked


@pytest.mark.parametrize("cases", [_CODE, _OTHERS], ids=["code", "others"])
@pytest.mark.parametrize(("isolation", "policy"), [("adaptive", "requeue"), ("process", "fail")])
def test_bad_neighbours_harm_no_run(shared: Ground, isolation: str, policy: str, cases: tuple[Case, ...]) -> None:
    for found in Trial(isolation, policy).carry_out(shared, cases, seconds=1.0):
        assert _harm_of(found.judged) == (0, 0, 0, 0), f"{found.case}: {found.judged} {found.judged.why}"


def test_there_is_a_case_of_every_kind() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40
