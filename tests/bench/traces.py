"""What exported spans cost: no-op runs with traces off, on with a collector, and on without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial

from orcheo_dispatch.ops.demo import WORKFLOW
from tests.bench import runs
from tests.bench.noop import CPU, RATE, SETTINGS
from tests.bench.result import Measurement, Series, Target, ratios
from tests.bench.rounds import Values, in_turn
from tests.bench.runs import Fired
from tests.bench.setting import Scale, Setting
from tests.bench.trivial import round_of as trivial_round

TITLE = "No-op runs with and without exported spans"
OFF, ON, DOWN = "traces off", "traces on", "traces on, collector down"
_ORCHEO = ", Orcheo workflow"
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
    fired = Fired(setting, WORKFLOW, scale.size(1_000, 40))
    with ExitStack() as stack:
        systems: Mapping[str, Mapping[str, str]] = {
            OFF: {},
            ON: exports_to(stack.enter_context(swallowing())),
            DOWN: exports_to(stack.enter_context(port_that_refuses())),
        }
        with setting.without_api():
            each = {name: _round(setting, count, variables) for name, variables in systems.items()}
            series = in_turn(scale, each, warm_up=False)
            series += _of_workflows(setting, scale, fired, systems)
    note = (
        f"{count:,} rows, committed at once, as in the other measurement of no-op runs; one worker, five spans a run, "
        "each exported, to a collector in a process of its own that drops what it gets."
    )
    return Measurement("traces", TITLE, tuple(series), _targets(series), (), (note,))


def _of_workflows(
    setting: Setting, scale: Scale, fired: Fired, systems: Mapping[str, Mapping[str, str]]
) -> list[Series]:
    """Measure a trivial Orcheo workflow in the same way."""
    each = {
        f"{name}{_ORCHEO}": trivial_round(setting, fired, partial(setting.ours, systems[name]), fired.count)
        for name in (OFF, ON)
    }
    return in_turn(scale, each, warm_up=False)


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
    rates = {each.system: each.values for each in series if each.metric == RATE[0]}
    compared = ((ON, OFF, 0.6), (DOWN, OFF, 0.6), (f"{ON}{_ORCHEO}", f"{OFF}{_ORCHEO}", 0.9))
    return tuple(
        Target(
            f"runs/s with {name}, of those with traces off",
            ratios(rates[name], rates[off]),
            least,
            "times",
            at_least=True,
        )
        for name, off, least in compared
    )
