"""What happens to the network in each trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.hosts.network import Direction, both
from tests.hosts.servers import PRIMARY, REDIS, STANDBY

API = "api"
"""Where runs are created and cancelled."""
WORKERS, DISPATCHERS = ("worker-0", "worker-1"), ("dispatcher-0", "dispatcher-1")
POSTGRES = (PRIMARY, STANDBY)
EVERYBODY = (API, *WORKERS, *DISPATCHERS)
HOSTS = (*EVERYBODY, REDIS, *POSTGRES)
_OF_ONE = ("worker-0",), ("dispatcher-0",)
_TARGETS = {"Postgres": POSTGRES, "Redis": (REDIS,)}
_CUT_SECONDS = 20.0
"""More than any process waits for a connection that is silent, and several leases."""
_DISTURBED_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of trouble, for `seconds`; then the network is whole again."""

    name: str
    cuts: tuple[Direction, ...] = ()
    disturbed: tuple[Direction, ...] = ()
    delay: float = 0.0
    """Of each packet, in seconds."""
    loss: float = 0.0
    promotes: bool = False
    """Whether the standby is promoted meanwhile. The former primary is alive until the trouble ends, then stopped."""
    seconds: float = _CUT_SECONDS
    lost_runs: str = "requeue"


def _cuts(process: Sequence[str], target: str) -> list[Scenario]:
    name = process[0].partition("-")[0]
    whole = both(process, _TARGETS[target])
    there, back = whole[: len(whole) // 2], whole[len(whole) // 2 :]
    return [
        Scenario(f"one {name} and {target} cut", whole),
        Scenario(f"one {name} to {target} cut, one way", there),
        Scenario(f"{target} to one {name} cut, one way", back),
    ]


_SERVED = both((*WORKERS, *DISPATCHERS), (*POSTGRES, REDIS))
_FORMER = both((PRIMARY,), HOSTS)
SCENARIOS: tuple[Scenario, ...] = (
    *(each for process in _OF_ONE for target in _TARGETS for each in _cuts(process, target)),
    Scenario("delay of 200 ms each way", disturbed=_SERVED, delay=0.2, seconds=_DISTURBED_SECONDS),
    Scenario("loss of 10 % each way", disturbed=_SERVED, loss=0.1, seconds=_DISTURBED_SECONDS),
    Scenario("standby cut from the primary", both((STANDBY,), (PRIMARY,))),
    Scenario("primary cut from everybody, standby promoted", _FORMER, promotes=True, lost_runs="fail"),
    Scenario(
        "one worker alone with the former primary, standby promoted",
        (
            *(each for each in _FORMER if "worker-0" not in each),
            *both(("worker-0",), (STANDBY,)),
        ),
        promotes=True,
        lost_runs="fail",
    ),
    Scenario(
        "primary and standby cut from each other, standby promoted beside it",
        both((STANDBY,), (PRIMARY,)),
        promotes=True,
        lost_runs="fail",
    ),
)
SHORT = "primary cut from everybody, standby promoted"
"""The one that `make test` has."""
