"""Runs that arrive: by webhook, or straight into the API's table, with nobody told of them; at random or evenly."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
from psycopg.types.json import Jsonb

from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi

# A copy of a run that the API made, as the API would write it: the same in the columns and in the payload.
_INSERT = """
INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at, updated_at,
                           workspace_id)
SELECT %(id)s, %(workflow_id)s, %(workflow_version_id)s, 'pending', %(triggered_by)s,
       %(payload)s || jsonb_build_object('id', %(id)s::text, 'created_at', orcheo_dispatch.iso(at),
                                         'updated_at', orcheo_dispatch.iso(at)),
       at, at, %(workspace_id)s
  FROM clock_timestamp() AS at
"""
_GOLDEN_SECTION = (3 - 5**0.5) / 2
_PENDING = "SELECT * FROM workflow_runs WHERE id = %s AND status = 'pending'"

Fire = Callable[[], Any]


class Template:
    """A pending run as the API made it, of which copies can be inserted without the API."""

    def __init__(self, api: OrcheoApi, dsn: str, workflow_id: str) -> None:
        """Fire one webhook and read its run; nobody may be there to begin it. The run stays behind."""
        run = api.fire_webhook(workflow_id, {"name": "Ada"})
        with psycopg.connect(dsn, autocommit=True, row_factory=psycopg.rows.dict_row) as connection:
            (self._row,) = connection.execute(_PENDING, (run["id"],)).fetchall()
        self._row["payload"] = Jsonb(self._row["payload"])
        self._dsn = dsn

    @contextmanager
    def inserting(self) -> Iterator[Fire]:
        """Yield a function that inserts one copy, and commits; for one thread at a time."""
        with psycopg.connect(self._dsn, autocommit=True, application_name="bench") as connection:
            yield lambda: connection.execute(_INSERT, {**self._row, "id": str(uuid4())})


def one_by_one(fire: Fire, count: int, *, pause: float) -> None:
    """Fire so many times, with pauses of `pause` seconds on average: from half of it to one and a half, at random."""
    for _ in range(count):
        fire()
        time.sleep(random.uniform(0.5, 1.5) * pause)


def evenly(fire: Fire, count: int, *, interval: float) -> None:
    """Fire so many times, so that the moments are spread evenly over the time from one poll to the next.

    The pauses are a golden section of `interval` seconds (D. Knuth, The Art of Computer Programming 3, 6.4: whatever
    their number, they divide it evenly). With moments at random the median of a few dozen would be off by a tenth.
    """
    began = time.monotonic()
    for n in range(count):
        time.sleep(max(0.0, began + n * _GOLDEN_SECTION * interval - time.monotonic()))
        fire()


def stream(fires: list[Fire], *, rate: float, seconds: float) -> None:
    """Fire at `rate` a second on average for so long, each of `fires` on a thread of its own and never waited for.

    The pauses of a thread are random (exponential), as with callers who know nothing of each other.
    """
    threads = [
        threading.Thread(target=_fire_at, args=(fire, rate / len(fires), seconds), daemon=True) for fire in fires
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def background(fires: list[Fire], *, rate: float) -> Iterator[None]:
    """Let a stream flow for as long as the block lasts."""
    stopping = threading.Event()
    threads = [
        threading.Thread(target=_fire_at, args=(fire, rate / len(fires), float("inf"), stopping), daemon=True)
        for fire in fires
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def _fire_at(fire: Fire, rate: float, seconds: float, stopping: threading.Event | None = None) -> None:
    """Fire at moments that are fixed beforehand: one that took long makes the next ones no rarer."""
    stopping = stopping or threading.Event()
    began = time.monotonic()
    at = random.expovariate(rate)
    while at < seconds and not stopping.wait(max(0.0, began + at - time.monotonic())):
        fire()
        at += random.expovariate(rate)
