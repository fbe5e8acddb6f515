"""Measurement 6: what it costs to do nothing: dispatchers that poll an empty table once a second, and one Beat."""

from __future__ import annotations

import time

from tests.bench.result import Curve, Measurement, Series, Spread, Target
from tests.bench.rounds import say
from tests.bench.setting import Scale, Setting
from tests.bench.statements import counted

TITLE = "Doing nothing"
OURS = "orcheo-dispatch"
_INTERVAL_SECONDS = 1
_VARIABLES = {"ORCHEO_DISPATCH_POLL_INTERVAL": str(_INTERVAL_SECONDS)}
_WINDOW_SECONDS = {0: 2, 1: 30, 4: 6}
"""By dispatchers; none, to know what the servers take by themselves. CPU is counted in ticks of 10 ms: the number that
has a target gets the longest, in which a tick is a thirtieth of a percent."""
_SETTLE_SECONDS = 6
_COUNT_SECONDS = 10
_CPU = ("CPU, a dispatcher", "CPU, Beat", "CPU, Postgres", "CPU, Redis")


def measure(setting: Setting, scale: Scale) -> Measurement:
    """Measure CPU over a window a round, then count statements in a window of its own: counting costs as well."""
    series: list[Series] = []
    with setting.without_api():
        for dispatchers, full_seconds in _WINDOW_SECONDS.items():
            seconds = scale.size(full_seconds, 2)
            setting.empty()
            with setting.ours(_VARIABLES, beats=min(1, dispatchers), dispatchers=dispatchers, workers=0) as running:
                time.sleep(scale.size(_SETTLE_SECONDS, 1))
                cpu: dict[str, list[float]] = {name: [] for name in _CPU}
                for _ in range(scale.rounds):
                    used = running.used()
                    time.sleep(seconds)
                    used.stop()
                    for name, group in zip(_CPU, ("dispatcher", "beat", "postgres", "redis"), strict=True):
                        share = 100 * used.cpu.get(group, 0.0) / seconds
                        cpu[name].append(share / max(1, dispatchers) if group == "dispatcher" else share)
                counted_for = scale.size(_COUNT_SECONDS, 2)
                with counted(setting) as statements:
                    time.sleep(counted_for)
            a_minute = 60 / counted_for * sum(statements.values())
            say(f"  {dispatchers} dispatchers: {cpu}, {dict(statements)} statements")
            series += [Series(OURS, name, "% of a core", tuple(values), dispatchers) for name, values in cpu.items()]
            series.append(Series(OURS, "statements, all", "a minute", (a_minute,), dispatchers))
    return _measurement(tuple(series))


def _measurement(series: tuple[Series, ...]) -> Measurement:
    found = Measurement("idle", TITLE, series)
    one = Spread.of(found.values(OURS, _CPU[0], 1))
    return Measurement(
        found.name,
        found.title,
        series,
        targets=(Target("CPU of one dispatcher", one, 0.2, "% of a core", at_least=False),),
        curves=(
            Curve("idle-cpu", "CPU of Postgres while nothing is to be done", _CPU[2], "dispatchers"),
            Curve(
                "idle-statements", "Statements a minute while nothing is to be done", "statements, all", "dispatchers"
            ),
        ),
        notes=(_NOTE,),
    )


_NOTE = (
    f"An empty table, one Beat with an interval of {_INTERVAL_SECONDS} s, no worker, no API. Shares of one core, "
    f"{_SETTLE_SECONDS} s after the start; of a dispatcher: the mean of all. Statements are all that the database is "
    "sent, `BEGIN` and `COMMIT` too, counted in its log in a window of its own."
)
