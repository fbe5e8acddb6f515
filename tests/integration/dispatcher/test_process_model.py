"""What the statements on processes find and delete is what models in Python say, for processes made at random."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random

import pytest
from sqlalchemy import Connection, text

from orcheo_dispatch.dispatcher.backlog import PROCESSES
from orcheo_dispatch.shared.alerts.statements import ALERT_DISPATCHERS, ALERT_RESTARTS
from orcheo_dispatch.shared.ledger.statements.policy import WORKERS_OF_QUEUE
from orcheo_dispatch.shared.ledger.statements.processes import (
    CONSUMED,
    GONE,
    PRUNE_PROCESSES,
    TICKED_ELSEWHERE,
    WORKERS,
)
from orcheo_dispatch.shared.ledger.status import BEAT_SILENT
from tests.support.database.comparing import RolledBack

_INSERT = text("""
INSERT INTO orcheo_dispatch.process (id, kind, host, pid, version, concurrency, queues, seen_at, started_at)
SELECT x.id, x.kind, x.host, 1, '1', x.concurrency, x.queues, now() - make_interval(secs => x.seen),
       now() - make_interval(secs => x.started)
  FROM jsonb_to_recordset(CAST(:rows AS jsonb))
       AS x(id uuid, kind text, host text, concurrency integer, queues text[], seen float8, started float8)
""")
_IDS = text("SELECT p.id::text FROM orcheo_dispatch.process AS p")
_KINDS = ("beat", "dispatcher", "worker")
_DAY = 86_400


@dataclass(frozen=True)
class Process:
    """A process, and how many seconds ago it was seen and started; the last release told no queues."""

    id: str
    kind: str
    concurrency: int
    queues: list[str] | None
    seen: int
    started: int = _DAY
    host: str = "h"

    @property
    def alive(self) -> bool:
        """Whether it was seen lately."""
        return self.seen < 30

    @property
    def vanished(self) -> bool:
        """Whether it ended without a word; a Beat cannot say one."""
        return not self.alive and self.seen < _DAY and self.kind != "beat"


def _at_random(random: Random, numbers: Sequence[int] = (0, 1, 2, 3, 8)) -> list[Process]:
    return [
        Process(
            f"00000000-0000-0000-0000-{n:012}",
            random.choice(_KINDS),
            random.randint(1, 9),
            random.choice((None, ["default"], ["gpu"], ["default", "io"])),
            random.choice((1, 5, 29, 31, 500, 2 * _DAY)),
            random.choice((501, 3599, 3601, 3 * _DAY)),
            random.choice(("h", "i")),
        )
        for n in range(random.choice(numbers))
    ]


@pytest.mark.parametrize("seed", range(100))
def test_processes_are_found_as_the_model_says(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    processes, seconds = _at_random(random), random.choice((2, 10, 100))
    recent = [each for each in processes if each.seen < seconds]
    workers = [each for each in recent if each.kind == "worker"]
    live = [each for each in processes if each.kind == "worker" and each.alive]
    with rolled_back() as connection:
        connection.execute(_INSERT, {"rows": json.dumps([asdict(each) for each in processes])})
        alive, smallest, ids = connection.execute(WORKERS, {"lease": seconds}).one()
        assert (alive, smallest) == (len(workers), min((each.concurrency for each in workers), default=0))
        assert sorted(ids) == sorted(each.id for each in workers)
        consumed = {queue for each in live for queue in each.queues or ()}
        assert {*connection.scalars(CONSUMED)} == consumed
        for queue in ("default", "gpu", "io", "no queue"):
            expected = sum(queue in (each.queues or ["default"]) for each in live)
            assert connection.scalar(WORKERS_OF_QUEUE, {"queue": queue}) == expected
        for process in (*processes, Process("00000000-0000-0000-0000-999999999999", "dispatcher", 1, None, 1)):
            others = [each for each in recent if each.id != process.id]
            expected = {"beat", "dispatcher"} <= {each.kind for each in others} | (
                {process.kind} & {"beat"} if process in recent else set()
            )
            given = {"id": process.id, "seconds": seconds}
            assert connection.scalar(TICKED_ELSEWHERE, given) is expected


@pytest.mark.parametrize("seed", range(20))
def test_processes_are_deleted_as_the_model_says(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    processes, retention = _at_random(random), random.choice((2, 10, 100))
    with rolled_back() as connection:
        connection.execute(_INSERT, {"rows": json.dumps([asdict(each) for each in processes])})
        connection.execute(PRUNE_PROCESSES, {"retention": retention})
        left = [each.id for each in processes if each.seen < retention]
        assert _left(connection) == left
        while left:
            connection.execute(GONE, {"id": left.pop(random.randrange(len(left)))})
            assert _left(connection) == left


def _left(connection: Connection) -> list[str]:
    return sorted(connection.scalars(_IDS))


@pytest.mark.parametrize("seed", range(20))
def test_figures_of_processes_are_those_of_the_model(rolled_back: RolledBack, seed: int) -> None:
    processes = _at_random(Random(seed), (0, 5, 40))
    restarts = Counter((each.kind, each.host) for each in processes if each.vanished and each.started < 3600)
    with rolled_back() as connection:
        connection.execute(_INSERT, {"rows": json.dumps([asdict(each) for each in processes])})
        figures = {row.kind: (row.alive, row.vanished) for row in connection.execute(PROCESSES)}
        assert figures == {
            kind: (
                sum(each.kind == kind and each.alive for each in processes),
                sum(each.kind == kind and each.vanished for each in processes),
            )
            for kind in {each.kind for each in processes if each.seen < _DAY}
        }
        found = [tuple(row) for row in connection.execute(ALERT_RESTARTS)]
        expected = [(f"{kind} on {host}", starts) for (kind, host), starts in restarts.items() if starts > 2]
        assert found == sorted(expected, key=lambda each: (-each[1], each[0]))
        dispatchers = sum(each.kind == "dispatcher" and each.alive for each in processes)
        assert connection.scalar(ALERT_DISPATCHERS) == dispatchers
        silent = [each.seen for each in processes if each.kind == "beat" and each.seen < _DAY]
        assert connection.scalar(BEAT_SILENT) == min(silent, default=None)
