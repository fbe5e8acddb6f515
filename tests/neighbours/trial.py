"""One worker under one isolation mode and one policy, and bad neighbours one after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedRedis
from tests.faults.ground import Ground
from tests.neighbours.cases import NOBODY, Case, Place
from tests.neighbours.measure import Harm, OurWave, measure
from tests.support.database.databases import Database
from tests.support.processes.processes import Process, Stack

ISOLATIONS = ("adaptive", "process", "shared")
POLICIES = ("requeue", "fail")
PROMISING = ("adaptive", "process")


@dataclass(frozen=True, slots=True)
class Found:
    """What a case did to its neighbours."""

    case: str
    isolation: str
    policy: str
    first: Harm
    again: Harm | None = None
    """The same once more, where it is the code of a workflow under `adaptive`."""
    inherent: str = ""
    """Why harm cannot be prevented."""

    @property
    def column(self) -> str:
        """The isolation and the policy."""
        return f"{self.isolation}, {self.policy}" if self.policy else self.isolation

    @property
    def judged(self) -> Harm:
        """What is to be nothing: under `adaptive` the harm from the second time on."""
        return self.first if self.again is None else self.again

    @property
    def is_inherent(self) -> bool:
        """Whether there is harm that cannot be prevented."""
        return bool(self.inherent) and not self.judged.none

    @property
    def is_wanted(self) -> bool:
        """Whether nobody is harmed who need not be. Of `shared`, and of the stock worker, nothing is promised."""
        return self.isolation not in PROMISING or self.judged.none or self.is_inherent


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
                usual = measure(OurWave(database), bad=lambda place=place: NOBODY.bad(place), seconds=seconds).worst  # type: ignore[misc]
                for case in group:
                    yield self._try(case, database, place, seconds, usual)

    def _try(self, case: Case, database: Database, place: Place, seconds: float, usual: float) -> Found:
        def one() -> Harm:
            return measure(OurWave(database), bad=lambda: case.bad(place), seconds=seconds, usual=usual + case.delay)

        first = one()
        again = one() if case.repeats and self.isolation == "adaptive" else None
        return Found(case.name, self.isolation, self.policy, first, again, case.inherent.get(self.policy, ""))

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
