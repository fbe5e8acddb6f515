"""One worker under one isolation mode and one policy, and bad neighbours one after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ops.real.embedded import EmbeddedRedis
from tests.databases import Database
from tests.faults.ground import Ground
from tests.neighbours.cases import NOBODY, Case, Place
from tests.neighbours.measure import Harm, wave
from tests.processes import Process, Stack

ISOLATIONS = ("adaptive", "process", "shared")
POLICIES = ("requeue", "fail")


@dataclass(frozen=True, slots=True)
class Found:
    """What a case did to its neighbours."""

    case: str
    isolation: str
    policy: str
    first: Harm
    again: Harm | None = None
    """The same once more, where it is the code of a workflow."""

    @property
    def is_wanted(self) -> bool:
        """Whether it is as promised: nobody is harmed, under `adaptive` from the second time on."""
        if self.isolation == "shared":
            return True
        if self.isolation == "adaptive" and self.again is not None:
            return self.again.none
        return self.first.none


@dataclass(frozen=True, slots=True)
class Trial:
    """A dispatcher and a worker of ours, on a database and a Redis of their own."""

    isolation: str
    policy: str

    def carry_out(self, ground: Ground, cases: Sequence[Case], *, seconds: float = 3.0) -> Iterator[Found]:
        """Yield what each case did."""
        groups: dict[tuple[tuple[str, str], ...], list[Case]] = {}
        for case in cases:
            groups.setdefault(case.settings, []).append(case)
        for settings, group in groups.items():
            with self._running(ground, dict(settings)) as (database, place, _):
                usual = wave(database, bad=lambda place=place: NOBODY.bad(place), seconds=seconds).worst  # type: ignore[misc]
                for case in group:
                    yield self._try(case, database, place, seconds, usual)

    def _try(self, case: Case, database: Database, place: Place, seconds: float, usual: float) -> Found:
        def one() -> Harm:
            return wave(database, bad=lambda: case.bad(place), seconds=seconds, usual=usual + case.delay)

        first = one()
        return Found(case.name, self.isolation, self.policy, first, one() if case.repeats else None)

    @contextmanager
    def _running(self, ground: Ground, settings: dict[str, str]) -> Iterator[tuple[Database, Place, Process]]:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orcheo-dispatch-neighbours-")))
            database = stack.enter_context(ground.database())
            broker = stack.enter_context(EmbeddedRedis(folder / "redis"))
            ours = Stack(database, broker.url, folder / "effects")
            ours.environment |= {
                "ORCHEO_WORKER_EXECUTOR": "tests.neighbours.acts:play",
                "ORCHEO_WORKER_LEASE": "8",
                "ORCHEO_WORKER_HEARTBEAT": "1",
                "ORCHEO_WORKER_RUN_TIMEOUT": "30",
                "ORCHEO_WORKER_CONCURRENCY": "100",
                "ORCHEO_DISPATCH_LEASE": "15",
                "ORCHEO_WORKER_ISOLATION": self.isolation,
                "ORCHEO_DISPATCH_LOST_RUNS": self.policy,
                **settings,
            }
            worker = stack.enter_context(ours.running("worker"))
            stack.enter_context(ours.running("dispatcher"))
            yield database, Place(database, broker.url), worker
