"""Processes that claim as dispatchers do, each with a connection of its own: nothing else of a dispatcher."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any
from uuid import uuid4

import psutil
from sqlalchemy import Engine, text

from orcheo_dispatch.shared.database.connections import make_engine, transaction
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.ledger.turns import Limits, Turns
from orcheo_dispatch.shared.settings.model import Settings

LEASE_SECONDS = 3600.0
_ANSWER_SECONDS = 300


class Claimer:
    """Claims as a dispatcher with the default settings does; the one place that knows how."""

    def __init__(self, engine: Engine) -> None:
        self._store = Store(engine)
        self._dispatcher_id = uuid4()
        self._turns = Turns()

    def claim(self, room: int, *, by_policy: bool = False) -> int:
        """Claim up to `room` runs and return how many it got; `by_policy` is what a look finds where policies limit."""
        claims = self._store.claim(
            room,
            triggers=("webhook", "cron"),
            every_trigger=False,
            lease=LEASE_SECONDS,
            dispatcher_id=self._dispatcher_id,
            turns=self._turns,
            limits=Limits(by_policy=by_policy),
        )
        return len(claims)


@dataclass(frozen=True, slots=True)
class Order:
    """So many claims, each of `room` runs, in the database of this DSN."""

    dsn: str
    claims: int
    room: int
    by_policy: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What one process did: how long each claim took, and from when to when by the machine's one monotonic clock."""

    began: float
    ended: float
    seconds: list[float]
    runs: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Stretch:
    """What all processes did at the same time."""

    asked: int
    """Runs that were asked for; where several claim at once, some find less."""
    runs: int
    seconds: float
    claim_seconds: list[float]
    cpu_seconds: float
    """Of the claiming processes."""
    postgres_cpu_seconds: float
    """Of their connections' server processes."""


class Claimers:
    """A number of claiming processes that wait for orders."""

    def __init__(self, pipes: list[Connection]) -> None:
        self._pipes = pipes

    def claim(self, dsn: str, *, dispatchers: int, claims: int, room: int, by_policy: bool = False) -> Stretch:
        """Let so many of them claim at once, each its share of `claims`; the clock runs while any is at it."""
        pipes = self._pipes[:dispatchers]
        for pipe in pipes:
            pipe.send(Order(dsn, claims // dispatchers, room, by_policy))
        servers = [psutil.Process(_receive(pipe)) for pipe in pipes]
        before = _cpu_seconds(servers)
        for pipe in pipes:
            pipe.send("go")
        answers: list[Answer] = [_receive(pipe) for pipe in pipes]
        return Stretch(
            asked=room * (claims // dispatchers) * dispatchers,
            runs=sum(answer.runs for answer in answers),
            seconds=max(answer.ended for answer in answers) - min(answer.began for answer in answers),
            claim_seconds=[seconds for answer in answers for seconds in answer.seconds],
            cpu_seconds=sum(answer.cpu_seconds for answer in answers),
            postgres_cpu_seconds=_cpu_seconds(servers) - before,
        )


@contextmanager
def claimers(count: int) -> Iterator[Claimers]:
    """Start the processes, and end them."""
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(count)]
    processes = [context.Process(target=_serve, args=(theirs,), daemon=True) for _, theirs in pairs]
    for process in processes:
        process.start()
    for _, theirs in pairs:
        theirs.close()
    try:
        yield Claimers([ours for ours, _ in pairs])
    finally:
        for ours, _ in pairs:
            ours.close()
        for process in processes:
            process.join()


def _serve(orders: Connection) -> None:
    """Carry out orders until nobody gives any. A connection is opened before the clock runs, and kept."""
    engines: dict[str, Engine] = {}
    made: dict[str, Claimer] = {}
    try:
        while True:
            order: Order = orders.recv()
            if order.dsn not in engines:
                engines[order.dsn] = _engine(order.dsn)
                made[order.dsn] = Claimer(engines[order.dsn])
            with transaction(engines[order.dsn]) as connection:
                orders.send(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
            orders.recv()
            orders.send(_claim_all(made[order.dsn], order))
    except EOFError:
        for engine in engines.values():
            engine.dispose()


def _claim_all(claimer: Claimer, order: Order) -> Answer:
    cpu, began = time.process_time(), time.monotonic()
    seconds, runs = [], 0
    for _ in range(order.claims):
        start = time.monotonic()
        runs += claimer.claim(order.room, by_policy=order.by_policy)
        seconds.append(time.monotonic() - start)
    return Answer(began, time.monotonic(), seconds, runs, time.process_time() - cpu)


def _engine(dsn: str) -> Engine:
    return make_engine(Settings.load(postgres_dsn=dsn), role="claimer", connections=1)


def _receive(pipe: Connection) -> Any:
    if not pipe.poll(_ANSWER_SECONDS):
        raise TimeoutError(f"no answer of a claiming process in {_ANSWER_SECONDS} s")
    return pipe.recv()


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)
