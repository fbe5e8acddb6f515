"""Measurement 4: from the commit of a run to its begin, on an idle stack and at half load.

Orcheo's worker and ours each have an API, a database and a logical database of Redis of their own, on the same servers,
and run at the same time: so they take turns without a restart. Whose turn it is not only polls.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg

from orcheo_dispatch.ops.demo import WORKFLOW
from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from orcheo_dispatch.shared.schema.migrate import migrate
from orcheo_dispatch.shared.settings.model import Settings
from tests.bench.arrivals import Fire, Template, evenly, one_by_one, stream
from tests.bench.moments import Moments
from tests.bench.result import Curve, Measurement, Series, Spread, Target, ratios
from tests.bench.setting import Scale, Setting
from tests.bench.usage import until

STOCK = "stock worker, push"
HINT = "orcheo-dispatch, push as a hint"
LISTEN = "orcheo-dispatch, LISTEN"
POLLING = "orcheo-dispatch, polling alone"
_WORKERS = 2
_INTERVAL_SECONDS = 1.0
_PAUSE_SECONDS = 0.1
_IDLE, _HALF, _OWN_HALF = "idle", "at half load", "at half of its own load"
_SENDERS = 8
_MAX_RUNS = 10_000_000
_LIVE = "SELECT count(*) FROM workflow_runs WHERE status IN ('pending', 'running')"

# The trigger stays, so that the dispatcher goes on listening; its function does nothing meanwhile.
_WAKE = "SELECT pg_get_functiondef('orcheo_dispatch.wake'::regproc)"
_WAKE_NOBODY = """
CREATE OR REPLACE FUNCTION orcheo_dispatch.wake() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$
"""


@dataclass(frozen=True, slots=True)
class _Side:
    """An API with a worker behind it."""

    api: OrcheoApi
    dsn: str
    connection: psycopg.Connection[Any]
    workflow_id: str
    moments: Moments

    def webhook(self) -> Any:
        """Fire one webhook."""
        return self.api.fire_webhook(self.workflow_id, {"name": "Ada"})

    def settle(self) -> None:
        """Wait until all runs have ended."""
        until(lambda: not self._live(), seconds=120, what="end of all runs", pause=0.05)

    def warm_up(self) -> None:
        """Let the first runs make what is made once, and forget them."""
        self.webhook()
        self.settle()
        for _ in range(20):
            self.webhook()
        self.settle()
        self.moments.forget()

    def capacity(self, count: int) -> float:
        """Return the runs that end in a second where webhooks come as fast as they can."""
        began = time.monotonic()
        self.api.fire_webhooks(self.workflow_id, [{"name": "Ada"}] * count, at_a_time=_SENDERS)
        self.settle()
        self.moments.forget()
        return count / (time.monotonic() - began)

    def delays(self, arrive: Callable[[], None]) -> list[float]:
        """Let runs arrive and return the milliseconds from the commit to the begin of each."""
        self.moments.forget()
        arrive()
        self.settle()
        return self.moments.milliseconds()

    def _live(self) -> int:
        return int(self.connection.execute(_LIVE).fetchall()[0][0])


def measure(setting: Setting, scale: Scale) -> Measurement:
    """Measure all ways in turn, round by round."""
    with ExitStack() as stack:
        stock = stack.enter_context(_side(setting, setting.api, setting.postgres.url))
        ours, template = stack.enter_context(_ours(setting))
        stack.enter_context(setting.stock(concurrency=_WORKERS))
        variables = {**ours.api.variables, "ORCHEO_DISPATCH_POLL_INTERVAL": str(_INTERVAL_SECONDS)}
        stack.enter_context(setting.ours(variables, workers=_WORKERS))
        insert = stack.enter_context(template.inserting())
        wake = _Wake(ours.connection)
        stock.warm_up()
        ours.warm_up()
        burst = scale.size(150, 20)
        rate, own_rate = stock.capacity(burst) / 2, ours.capacity(burst) / 2

        ways = [
            _Way(STOCK, stock, stock.webhook),
            _Way(HINT, ours, ours.webhook),
            _Way(LISTEN, ours, insert, senders=1, notify=True),
            _Way(POLLING, ours, insert, senders=1, evenly=True),
        ]
        found: dict[tuple[str, str], list[list[float]]] = {}
        for _ in range(scale.rounds):
            for way in ways:
                if way.notify and not wake.there:
                    continue
                wake.set(way.notify)
                loads = {_IDLE: partial(way.trickle, scale), _HALF: partial(way.stream, rate, scale)}
                if way.system == HINT:
                    loads[_OWN_HALF] = partial(way.stream, own_rate, scale)
                for load, arrive in loads.items():
                    found.setdefault((way.system, load), []).append(way.side.delays(arrive))
        return _measurement(found, rate, own_rate)


@dataclass(frozen=True, slots=True)
class _Way:
    """One way by which a worker comes to know of a run."""

    system: str
    side: _Side
    fire: Fire
    senders: int = _SENDERS
    notify: bool = False
    evenly: bool = False
    """Whether what matters is when in the interval between two polls a run comes."""

    def trickle(self, scale: Scale) -> None:
        """Let runs arrive one by one."""
        if self.evenly:
            evenly(self.fire, scale.size(20, 5), interval=_INTERVAL_SECONDS)
        else:
            one_by_one(self.fire, scale.size(60, 10), pause=_PAUSE_SECONDS)

    def stream(self, rate: float, scale: Scale) -> None:
        """Let runs arrive at a rate, whatever becomes of them."""
        stream([self.fire] * self.senders, rate=rate, seconds=scale.size(3, 1))


class _Wake:
    """Whether a commit notifies the dispatcher, where it can."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self.there = bool(connection.execute("SELECT to_regproc('orcheo_dispatch.wake')").fetchall()[0][0])
        self._made = connection.execute(_WAKE).fetchall()[0][0] if self.there else ""

    def set(self, on: bool) -> None:
        """Let each commit of a run notify, or none."""
        if self.there:
            self._connection.execute(self._made if on else _WAKE_NOBODY)


@contextmanager
def _side(setting: Setting, api: OrcheoApi, dsn: str) -> Iterator[_Side]:
    workflow_id = api.upload(WORKFLOW, WORKFLOW.stem)
    api.configure_webhook(workflow_id)
    with psycopg.connect(dsn, autocommit=True, application_name="bench") as connection:
        moments = Moments(connection)
        try:
            yield _Side(api, dsn, connection, workflow_id, moments)
        finally:
            moments.close()


@contextmanager
def _ours(setting: Setting) -> Iterator[tuple[_Side, Template]]:
    """Yield our side, before any process of ours is up, and a run to make copies of."""
    dsn = setting.database("latency")
    redis_url = setting.redis.url.removesuffix("/0") + "/1"
    with OrcheoApi(dsn, redis_url, setting.folder / "orcheo-latency") as api:
        api.limit_runs(_MAX_RUNS)
        migrate(Settings.load(postgres_dsn=dsn, redis_url=redis_url), notify=True)
        with _side(setting, api, dsn) as side:
            yield side, Template(api, dsn, side.workflow_id)


def _measurement(found: dict[tuple[str, str], list[list[float]]], rate: float, own_rate: float) -> Measurement:
    series: list[Series] = []
    for (name, load), rounds in found.items():
        every = [milliseconds for each in rounds for milliseconds in each]
        series.append(Series(name, f"p50, {load}", "ms", tuple(statistics.median(each) for each in rounds)))
        # Of all rounds at once: one round has too few for them.
        series += [Series(name, f"p{p}, {load}", "ms", (_percentile(every, p),)) for p in (95, 99)]
        series.append(Series(name, f"samples, {load}", "runs", (float(len(every)),)))
    measured = Measurement("latency", "Latency from commit to begin", tuple(series))
    targets: list[Target] = []
    stock = measured.values(STOCK, f"p50, {_IDLE}")
    for name in (HINT, LISTEN):
        if (name, _IDLE) not in found:
            continue
        half = ratios(measured.values(name, f"p50, {_HALF}"), measured.values(STOCK, f"p50, {_HALF}"))
        idle = ratios(measured.values(name, f"p50, {_IDLE}"), stock)
        targets += [
            Target(f"{name}, p50 of the stock worker's, {_IDLE}", idle, 2.0, "times", at_least=False),
            Target(f"{name}, p50 of the stock worker's, {_HALF}", half, 2.0, "times", at_least=False),
        ]
        for load in (_IDLE, _HALF):
            p99 = Spread.of(measured.values(name, f"p99, {load}"))
            targets.append(Target(f"{name}, p99, {load}", p99, 100, "ms", at_least=False))
    polling = Spread.of(measured.values(POLLING, f"p50, {_IDLE}"))
    limit = 1000 * _INTERVAL_SECONDS / 2 + 25
    targets.append(Target(f"{POLLING}, p50, {_IDLE}", polling, limit, "ms", at_least=False))
    return Measurement(
        measured.name,
        measured.title,
        measured.series,
        tuple(targets),
        curves=(
            Curve("latency-idle", "Commit to begin, idle", f"p50, {_IDLE}", systems=(STOCK, HINT, LISTEN)),
            Curve("latency-half", "Commit to begin, at half load", f"p50, {_HALF}", systems=(STOCK, HINT, LISTEN)),
        ),
        notes=(_LOADS.format(rate=rate, own_rate=own_rate), _NOTE),
    )


_LOADS = (
    "Half load is {rate:.0f} runs a second for all: half of what the stock worker ends while webhooks come as fast as "
    "they can. Half of what ours ends then is {own_rate:.0f}."
)
_NOTE = (
    "Both moments are noted by one trigger on the API's table, at the end of the transaction that inserts the run and "
    "of the one that makes it running, by the server's clock. For LISTEN and for polling alone the runs are inserted "
    "without the API, so nobody pushes; for the push, and for polling alone, the trigger that notifies does nothing. "
    "For polling alone on an idle stack they come at moments spread evenly over the interval. "
    "The p50 is a round's, with the least and the most of the rounds; p95 and p99 are of all rounds together."
)


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
