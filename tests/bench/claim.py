"""Measurement 5: how many runs dispatchers claim in a second, and how that grows with the tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psycopg

from shared.database import open_engine
from shared.settings import Settings
from tests.bench import backlog
from tests.bench.claimer import Claimer, Claimers, Stretch, claimers
from tests.bench.result import Curve, Measurement, Series, Spread, Target, ratios
from tests.bench.setting import Scale, Setting
from tests.databases import Database, create, drop, make_orcheo_tables, migrate

ROOM = 1000
"""Runs that one claim takes: the batch size that is advised for throughput."""
_STRETCH = 8
"""Claims in a timed stretch: so many that eight dispatchers have one each, so few that 10,000 pending runs last."""
_PENDING = (10_000, 100_000, 1_000_000)
_ENDED = 10_000_000
_DISPATCHERS = (1, 2, 4, 8)
_ROOMS = (10, 100, 1000)
_MANY = 100_000
"""Pending runs wherever their number is not what is varied."""

_FLOOD = "workflow-that-floods"
_FEW = 10
_GIVE_UP = 200
"""Oldest first it would be a thousand."""
_FLOOD_ROOM = 100
"""The default batch size: that is what fairness has to work with."""
_FEW_LEFT = "SELECT count(*) FROM workflow_runs WHERE status = 'pending' AND workflow_id <> %s"

OURS = "orcheo-dispatch"


@dataclass(frozen=True, slots=True)
class _Table:
    """A database with a backlog, and a connection to look after it."""

    dsn: str
    connection: backlog.Connection

    def stretch(self, pool: Claimers, *, dispatchers: int = 1, room: int = ROOM) -> Stretch:
        """Time a stretch of claims; then, untimed, end what was claimed and add as many pending runs."""
        stretch = pool.claim(self.dsn, dispatchers=dispatchers, claims=_STRETCH, room=room)
        backlog.work_off(self.connection)
        backlog.add_pending(self.connection, stretch.runs)
        return stretch


class _Tables:
    """Databases on one server, each a copy of one with Orcheo's tables and our schema."""

    def __init__(self, stack: ExitStack, postgres_url: str, redis_url: str) -> None:
        self._stack, self._url = stack, postgres_url
        self._admin = stack.enter_context(psycopg.connect(postgres_url, autocommit=True))
        self._empty = self._create()
        make_orcheo_tables(self._empty, redis_url)
        migrate(self._empty)

    @contextmanager
    def _dropped(self, database: Database) -> Iterator[None]:
        try:
            yield
        finally:
            drop(self._admin, database)

    def _create(self, **template: str) -> Database:
        database = create(self._admin, self._url, **template)
        self._stack.enter_context(self._dropped(database))
        return database

    def add(self, *, pending: int, ended: int = 0) -> _Table:
        """Make one with so many runs."""
        dsn = self._create(template=self._empty.name).dsn
        connection = self._stack.enter_context(psycopg.connect(dsn, autocommit=True))
        if ended:
            backlog.add_ended(connection, ended)
        backlog.add_pending(connection, pending)
        backlog.vacuum(connection)
        return _Table(dsn, connection)


def measure(setting: Setting, scale: Scale) -> Measurement:
    """Measure claims on databases of their own on this server, which are dropped again."""
    found: dict[tuple[str, str, float], list[float]] = {}
    with ExitStack() as stack:
        tables = _Tables(stack, setting.postgres.url, setting.redis.url)
        by_pending = {pending: tables.add(pending=pending) for pending in (_PENDING[:2] if scale.quick else _PENDING)}
        many = by_pending[_MANY]
        beside_ended = None if scale.quick else tables.add(pending=_MANY, ended=_ENDED)
        pool = stack.enter_context(claimers(max(_DISPATCHERS)))

        def note(system: str, at: float, stretch: Stretch, room: int = ROOM) -> None:
            milliseconds = 1000 * statistics.median(stretch.claim_seconds)
            for metric, value in (
                (_RATE, stretch.runs / stretch.seconds),
                (_TIME, milliseconds),
                (_CPU, 1e6 * stretch.cpu_seconds / stretch.runs),
                (_CPU_OF_POSTGRES, 1e6 * stretch.postgres_cpu_seconds / stretch.runs),
                (_YIELD, 100 * stretch.runs / (_STRETCH * room)),
            ):
                found.setdefault((system, metric, at), []).append(value)

        for table in (*by_pending.values(), *([beside_ended] if beside_ended else [])):
            table.stretch(pool)
        for _ in range(scale.rounds):
            for pending, table in by_pending.items():
                note(OURS, pending, table.stretch(pool))
            if beside_ended:
                note(_BESIDE_ENDED, _MANY, beside_ended.stretch(pool))
            for dispatchers in _DISPATCHERS:
                note(_BY_DISPATCHERS, dispatchers, many.stretch(pool, dispatchers=dispatchers))
            for room in _ROOMS:
                note(_BY_ROOM, room, many.stretch(pool, room=room), room)
        flooded = _flooded(tables)
    series = [
        Series(system, metric, _UNITS[metric], tuple(values), at) for (system, metric, at), values in found.items()
    ]
    series.append(Series(OURS, _UNTIL_SERVED, "claims", (float(flooded),)))
    return _measurement(tuple(series))


_RATE = "runs claimed a second"
_TIME = "time of a claim"
_CPU = "CPU a run claimed, dispatcher"
_CPU_OF_POSTGRES = "CPU a run claimed, Postgres"
_YIELD = "of the batch size got"
_UNTIL_SERVED = "claims until ten other workflows are served"
_UNITS = {_RATE: "runs/s", _TIME: "ms", _CPU: "us", _CPU_OF_POSTGRES: "us", _YIELD: "%"}
_BESIDE_ENDED = f"beside {_ENDED // 1_000_000} million ended runs"
_BY_DISPATCHERS = "by dispatchers"
_BY_ROOM = "by batch size"


def _flooded(tables: _Tables) -> int:
    """Return how many claims it takes until ten workflows with ten runs each, behind a flood of another, are claimed.

    What is claimed is ended after each claim, as by workers that are quick.
    """
    table = tables.add(pending=0)
    backlog.add_pending(table.connection, _MANY, workflow=_FLOOD)
    for n in range(_FEW):
        backlog.add_pending(table.connection, _FEW, workflow=f"workflow-{n}")
    backlog.vacuum(table.connection)
    claims = 0
    with open_engine(Settings.load(postgres_dsn=table.dsn), role="claimer") as engine:
        claimer = Claimer(engine)
        while table.connection.execute(_FEW_LEFT, (_FLOOD,)).fetchall()[0][0] and claims < _GIVE_UP:
            claimer.claim(_FLOOD_ROOM)
            claims += 1
            backlog.work_off(table.connection)
    return claims


def _measurement(series: tuple[Series, ...]) -> Measurement:
    found = Measurement("claim", "Claims", series)
    few, *_, most = (each.at for each in series if each.system == OURS and each.metric == _RATE)
    rates = {at: found.values(OURS, _RATE, at) for at in (few, most)}
    one, eight = (found.values(_BY_DISPATCHERS, _RATE, at) for at in (1, 8))
    targets = [
        Target(
            f"runs claimed a second, {most:,.0f} pending",
            Spread.of(rates[most]),
            30_000,
            "runs/s",
            at_least=True,
        ),
        Target(
            f"{most:,.0f} pending, of the rate with {few:,.0f}",
            ratios(rates[most], rates[few]),
            0.8,
            "times",
            at_least=True,
        ),
        Target("eight dispatchers, of the rate of one", ratios(eight, one), 1.0, "times", at_least=True),
    ]
    return Measurement(
        found.name,
        found.title,
        series,
        tuple(targets),
        curves=(
            Curve(
                "claim-pending",
                "Runs claimed a second by pending runs",
                _RATE,
                "pending runs",
                (OURS, _BESIDE_ENDED),
                log_x=True,
            ),
            Curve(
                "claim-dispatchers", "Runs claimed a second by dispatchers", _RATE, "dispatchers", (_BY_DISPATCHERS,)
            ),
        ),
        notes=(_NOTE,),
    )


_NOTE = (
    f"A dispatcher's own claim, {ROOM:,} runs at a time, {_STRETCH} claims a stretch, shared by the dispatchers, each "
    "a process with a connection. Only the claims are timed. After a stretch, untimed, what it claimed is begun and "
    "settled, and as many pending runs are added. The rounds go through all tables in turn."
)
