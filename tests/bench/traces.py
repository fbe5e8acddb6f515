"""What exported spans cost: no-op runs with traces off, on with a collector, and on without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

from tests.bench import runs
from tests.bench.noop import CPU, RATE, SETTINGS
from tests.bench.result import Measurement, Series, Target, ratios
from tests.bench.rounds import Values, in_turn
from tests.bench.setting import Scale, Setting

TITLE = "No-op runs with and without exported spans"
OFF, ON, DOWN = "traces off", "traces on", "traces on, collector down"
_WARM_UP_RUNS = 200
_WINDOW = """
SELECT count(*) FILTER (WHERE outcome = 'succeeded') AS runs,
       EXTRACT(epoch FROM max(settled_at) - min(claimed_at))::float8 AS seconds
  FROM orcheo_dispatch.dispatch
"""


def measure(setting: Setting, scale: Scale) -> Measurement:
    """Measure the three in turn."""
    from tests.support.servers.collector import exports_to, port_that_refuses, swallowing

    count = scale.size(20_000, 300)
    with ExitStack() as stack:
        systems: Mapping[str, Mapping[str, str]] = {
            OFF: {},
            ON: exports_to(stack.enter_context(swallowing())),
            DOWN: exports_to(stack.enter_context(port_that_refuses())),
        }
        with setting.without_api():
            each = {name: _round(setting, count, variables) for name, variables in systems.items()}
            series = in_turn(scale, each, warm_up=False)
    note = (
        f"{count:,} rows, committed at once, as in the other measurement of no-op runs; one worker, five spans a run, "
        "each exported, to a collector in a process of its own that drops what it gets."
    )
    return Measurement("traces", TITLE, tuple(series), _targets(series), (), (note,))


def _round(setting: Setting, count: int, variables: Mapping[str, str]) -> Callable[[], Values]:
    def once() -> Values:
        setting.empty()
        with setting.ours({**SETTINGS, **variables}) as running:
            runs.insert(setting, _WARM_UP_RUNS)
            setting.until_terminal()
            setting.forget_runs()
            runs.insert(setting, count)
            used = running.used()
            setting.until_terminal()
            used.stop()
        (found,) = setting.rows(_WINDOW)
        if found["runs"] != count:
            raise RuntimeError(f"{found['runs']} of {count} runs succeeded: {setting.statuses()}")
        cpu = {(f"CPU, {name}", "ms/run"): 1000 * seconds / count for name, seconds in used.cpu.items()}
        return {RATE: count / found["seconds"], **cpu, (CPU, "ms/run"): 1000 * sum(used.cpu.values()) / count}

    return once


def _targets(series: list[Series]) -> tuple[Target, ...]:
    found = {(each.system, each.metric): each.values for each in series}
    return tuple(
        Target(
            f"runs/s with {name}, of those with traces off",
            ratios(found[name, RATE[0]], found[OFF, RATE[0]]),
            least,
            "times",
            at_least=True,
        )
        for name, least in ((ON, 0.8), (DOWN, 0.8))
    )
