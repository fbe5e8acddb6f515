"""Runs that wait, many at a time in one worker."""

from __future__ import annotations

from pathlib import Path

from tests.bench.result import Curve, Measurement, Series, Spread, Target
from tests.bench.rounds import Values, in_turn, say
from tests.bench.runs import Fired
from tests.bench.setting import Running, Scale, Setting
from tests.bench.usage import (
    MEGABYTE,
    connections,
    forget_peaks,
    peak_resident_bytes,
    proportional_bytes,
    resident_bytes,
)

TITLE = "Runs that wait five seconds each, in one worker"
OURS, STOCK = "orcheo-dispatch, 1 worker", "stock worker, 2 processes"
WAIT_SECONDS = 5.0
WORKFLOW = Path(__file__).parent / "workflows" / "wait.py"
_MAKESPAN, _EXTRA, _EACH, _CONNECTIONS = (
    ("makespan", "s"),
    ("makespan, of the wait", "times"),
    ("memory a waiting run", "MB"),
    ("database connections, whole stack", ""),
)

_WINDOW = """
SELECT count(*) FILTER (WHERE status = 'succeeded') AS runs,
       EXTRACT(epoch FROM max((payload ->> 'completed_at')::timestamptz)
                          - min((payload ->> 'started_at')::timestamptz))::float8 AS seconds,
       EXTRACT(epoch FROM max((payload ->> 'completed_at')::timestamptz)
                          - %(committed)s::timestamptz)::float8 AS since_commit
  FROM workflow_runs
"""


def measure(setting: Setting, scale: Scale) -> Measurement:
    """Measure one worker of ours with all runs at once, and the stock worker once with fewer runs."""
    count, few = scale.size(500, 20), scale.size(8, 4)
    say(f"  firing {count} webhooks")
    fired = Fired(setting, WORKFLOW, count)
    with setting.without_api():
        series = in_turn(scale, {OURS: lambda: _ours(setting, fired)}, warm_up=False)
    few_fired = Fired(setting, WORKFLOW, few)
    with setting.without_api():
        series += in_turn(Scale(1, quick=True), {STOCK: lambda: _stock(setting, few_fired)})
    settings = " ".join(f"`{name}={value}`" for name, value in settings_for(count).items())
    note = (
        f"{count} webhooks fired once through the API, put back at once when all processes are up. Ours: {settings}. "
        "Makespan is from the first `started_at` to the last `completed_at`. Memory a waiting run is the worker's most "
        f"resident memory less that at rest, by {count}. The stock worker has two processes, so it executes two at a "
        f"time: measured once, with {few} runs."
    )
    curve = Curve("waiting", f"{count} runs that wait {WAIT_SECONDS:g} s each: makespan", _MAKESPAN[0], systems=(OURS,))
    return Measurement("waiting", TITLE, tuple(series), _targets(series), (curve,), (note,))


def settings_for(count: int) -> dict[str, str]:
    """Return the settings to use for `count` runs at a time in one worker."""
    return {
        "ORCHEO_WORKER_CONCURRENCY": str(count),
        "ORCHEO_DISPATCH_MAX_QUEUED": str(count),
        "ORCHEO_DISPATCH_BATCH_SIZE": str(count),
    }


def _ours(setting: Setting, fired: Fired) -> Values:
    setting.empty()
    with setting.ours(settings_for(fired.count)) as running:
        return _execute(setting, fired, running)


def _stock(setting: Setting, fired: Fired) -> Values:
    setting.empty()
    with setting.stock() as running:
        return _execute(setting, fired, running)


def _execute(setting: Setting, fired: Fired, running: Running) -> Values:
    workers = running.pids("worker")
    fired.restore(2)
    setting.until_terminal()
    setting.forget_runs()
    forget_peaks(workers)
    at_rest, used = resident_bytes(workers), running.used()
    with connections(setting.postgres.url) as seen:
        fired.restore()
        committed = setting.value("SELECT now() AS now")
        setting.until_terminal()
    used.stop()
    most, proportional = peak_resident_bytes(workers), proportional_bytes(workers)
    (found,) = setting.rows(_WINDOW, {"committed": committed})
    if found["runs"] != fired.count:
        raise RuntimeError(f"{found['runs']} of {fired.count} runs succeeded: {setting.statuses()}")
    return {
        _MAKESPAN: found["seconds"],
        ("from commit to the last end", "s"): found["since_commit"],
        _EXTRA: found["seconds"] / WAIT_SECONDS,
        _EACH: (most - at_rest) / MEGABYTE / fired.count,
        ("memory at rest, worker", "MB"): at_rest / MEGABYTE,
        ("memory at its most, worker", "MB"): most / MEGABYTE,
        ("memory at the end, worker, PSS", "MB"): proportional / MEGABYTE,
        _CONNECTIONS: float(seen.most),
        ("CPU, worker", "ms/run"): 1000 * used.cpu["worker"] / fired.count,
        ("CPU, postgres", "ms/run"): 1000 * used.cpu["postgres"] / fired.count,
    }


def _targets(series: list[Series]) -> tuple[Target, ...]:
    found = {each.metric: Spread.of(each.values) for each in series if each.system == OURS}
    return (
        Target("makespan at most 1.1 times the wait", found[_EXTRA[0]], 1.1, "times", at_least=False),
        Target("at most 3 MB a waiting run", found[_EACH[0]], 3.0, "MB", at_least=False),
        Target("at most 20 database connections", found[_CONNECTIONS[0]], 20.0, "", at_least=False),
    )
