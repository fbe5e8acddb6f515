"""Measurement 5: how many runs dispatchers claim in a second, and how that grows with the tables."""

from __future__ import annotations

import statistics
from contextlib import ExitStack

from orcheo_dispatch.shared.database.connections import open_engine
from orcheo_dispatch.shared.settings.model import Settings
from tests.bench import backlog
from tests.bench.claim_tables import STRETCH, Table, Tables, without_checkpoints, without_page_images
from tests.bench.claimer import Claimer, Stretch, claimers
from tests.bench.result import Curve, Measurement, Series, Spread, Target, ratios
from tests.bench.setting import Scale, Setting

ROOM = 1000
"""Runs that one claim takes: the batch size that is advised for throughput."""
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


def measure(setting: Setting, scale: Scale) -> Measurement:
    """Measure claims on databases of their own on this server, which are dropped again."""
    with ExitStack() as stack:
        tables = stack.enter_context(Tables(setting))
        by_pending = {pending: tables.add() for pending in (_PENDING[:2] if scale.quick else _PENDING)}
        beside_ended = None if scale.quick else tables.add(ended=_ENDED)
        flooded = tables.add()
        pool = stack.enter_context(claimers(max(_DISPATCHERS)))
        stack.enter_context(without_checkpoints(setting))
        for pending, table in by_pending.items():
            table.fill(pending)
        if beside_ended:
            beside_ended.fill(_MANY)
        taken = _Taken()
        many = by_pending[_MANY]
        for table in (*by_pending.values(), *([beside_ended] if beside_ended else [])):
            table.stretch(pool, room=ROOM)
        for _ in range(scale.rounds):
            for pending, table in by_pending.items():
                taken.note(OURS, pending, table.stretch(pool, room=ROOM))
            if beside_ended:
                taken.note(_BESIDE_ENDED, _MANY, beside_ended.stretch(pool, room=ROOM))
            for dispatchers in _DISPATCHERS:
                taken.note(_BY_DISPATCHERS, dispatchers, many.stretch(pool, room=ROOM, dispatchers=dispatchers))
            for room in _ROOMS:
                taken.note(_BY_ROOM, room, many.stretch(pool, room=room))
        served = _claims_until_served(flooded)
        for _ in range(scale.rounds):
            setting.rows("CHECKPOINT")
            taken.note(_AFTER_CHECKPOINT, _MANY, many.stretch(pool, room=ROOM))
        if beside_ended:
            with without_page_images(setting):
                for _ in range(scale.rounds):
                    taken.note(_WITHOUT_IMAGES, _MANY, many.stretch(pool, room=ROOM))
                    taken.note(_BESIDE_ENDED_WITHOUT_IMAGES, _MANY, beside_ended.stretch(pool, room=ROOM))
    return _measurement((*taken.series(), Series(OURS, _UNTIL_SERVED, "claims", (float(served),))))


class _Taken:
    """What was taken down, by system, metric and what is varied."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str, float], list[float]] = {}

    def note(self, system: str, at: float, stretch: Stretch) -> None:
        """Take down one stretch."""
        for metric, value in (
            (_RATE, stretch.runs / stretch.seconds),
            (_TIME, 1000 * statistics.median(stretch.claim_seconds)),
            (_CPU, 1e6 * stretch.cpu_seconds / stretch.runs),
            (_CPU_OF_POSTGRES, 1e6 * stretch.postgres_cpu_seconds / stretch.runs),
            (_YIELD, 100 * stretch.runs / stretch.asked),
        ):
            self._values.setdefault((system, metric, at), []).append(value)

    def series(self) -> tuple[Series, ...]:
        """Return all of it."""
        return tuple(
            Series(system, metric, _UNITS[metric], tuple(values), at)
            for (system, metric, at), values in self._values.items()
        )


_RATE = "runs claimed a second"
_TIME = "time of a claim"
_CPU = "CPU a run claimed, dispatcher"
_CPU_OF_POSTGRES = "CPU a run claimed, Postgres"
_YIELD = "of the batch size got"
_UNTIL_SERVED = "claims until ten other workflows are served"
_UNITS = {_RATE: "runs/s", _TIME: "ms", _CPU: "us", _CPU_OF_POSTGRES: "us", _YIELD: "%"}
_BESIDE_ENDED = f"beside {_ENDED // 1_000_000} million ended runs"
_AFTER_CHECKPOINT = "right after a checkpoint"
_WITHOUT_IMAGES = "without full-page images"
_BESIDE_ENDED_WITHOUT_IMAGES = f"{_BESIDE_ENDED}, without full-page images"
_BY_DISPATCHERS = "by dispatchers"
_BY_ROOM = "by batch size"


def _claims_until_served(table: Table) -> int:
    """Return how many claims it takes until ten workflows with ten runs each, behind a flood of another, are claimed.

    What is claimed is ended after each claim, as by workers that are quick.
    """
    backlog.add_pending(table.connection, _MANY, workflow=_FLOOD)
    for n in range(_FEW):
        backlog.add_pending(table.connection, _FEW, workflow=f"workflow-{n}")
    backlog.vacuum(table.connection)
    claims = 0
    with open_engine(Settings.load(postgres_dsn=table.dsn), role="claimer") as engine:
        claimer = Claimer(engine)
        while table.value(_FEW_LEFT, _FLOOD) and claims < _GIVE_UP:
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
    for beside, without in ((_BESIDE_ENDED, OURS), (_BESIDE_ENDED_WITHOUT_IMAGES, _WITHOUT_IMAGES)):
        if any(each.system == beside for each in series):
            share = ratios(found.values(beside, _RATE, _MANY), found.values(without, _RATE, _MANY))
            targets.append(Target(f"{beside}, of the rate without them", share, 0.8, "times", at_least=True))
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
    f"A dispatcher's own claim, {ROOM:,} runs at a time, {STRETCH} claims a stretch, shared by the dispatchers, each "
    "a process with a connection. Only the claims are timed. After a stretch, untimed, what it claimed is begun and "
    "settled, and as many pending runs are added. The rounds go through all tables in turn. `max_wal_size` is so great "
    "that no checkpoint comes meanwhile: after one, each page that is changed is first written whole to the log "
    "(a full-page image), which the stretches right after a checkpoint show. Beside ended runs nearly each run claimed "
    "costs such an image, whenever the last checkpoint was: the IDs of runs are random, so each falls on another page "
    "of the ledger's primary key. The last two lines are measured under `full_page_writes` off."
)
