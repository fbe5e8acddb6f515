"""How runs that wait grow with worker processes: a curve, not a target. On as many cores as this machine has."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

from tests.bench.result import Curve, Measurement, Series
from tests.bench.rounds import Values, in_turn
from tests.bench.runs import Fired
from tests.bench.setting import Scale, Setting
from tests.bench.waiting import WAIT_SECONDS, WORKFLOW

TITLE = "More worker processes"
_PROCESSES = (1, 2, 4)
_WARM_UP_RUNS = 10
_RATE = ("rate", "runs/s")
_SPAN = "SELECT EXTRACT(epoch FROM max(settled_at) - min(begun_at))::float8 FROM orcheo_dispatch.dispatch"


def measure(setting: Setting, scale: Scale) -> Measurement:
    """Measure runs that wait, with the default settings, once: the wait makes the rounds alike."""
    once = replace(scale, rounds=1)
    name = f"runs that wait {WAIT_SECONDS:g} s"
    fired = Fired(setting, WORKFLOW, scale.size(256, 20))
    series: list[Series] = []
    for processes in _PROCESSES[:2] if scale.quick else _PROCESSES:
        series += in_turn(once, {name: partial(_once, setting, fired, processes)}, at=processes, warm_up=False)
    curve = Curve("scale-waiting", f"Runs a second by worker processes: {name}", _RATE[0], "worker processes", (name,))
    note = (
        f"{fired.count} runs become pending at once, when all processes are up and warm; from the first begin to the "
        "last settle. Default settings: 32 runs at a time in a process. All processes, the servers too, share the "
        f"{os.cpu_count()} cores of one machine."
    )
    return Measurement("scale", TITLE, tuple(series), curves=(curve,), notes=(note,))


def _once(setting: Setting, fired: Fired, processes: int) -> Values:
    setting.empty()
    with setting.ours(workers=processes):
        fired.restore(min(processes * _WARM_UP_RUNS, fired.count))
        setting.until_terminal()
        setting.forget_runs()
        fired.restore()
        setting.until_terminal()
    return {_RATE: fired.count / float(setting.value(_SPAN))}
