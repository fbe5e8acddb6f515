"""Measurement 7: from the start of a worker process to its first begin, and the memory of processes at rest."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace

import psutil

from orcheo_dispatch.ops.demo import WORKFLOW
from tests.bench import runs
from tests.bench.result import Curve, Measurement, Series, Target
from tests.bench.rounds import Values, in_turn
from tests.bench.setting import Running, Scale, Setting
from tests.bench.usage import MEGABYTE, cpu_seconds, proportional_bytes, resident_bytes, until

TITLE = "Start, and memory at rest"
NOOP, ORCHEO, STOCK = "orcheo-dispatch, no-op executor", "orcheo-dispatch, executor orcheo", "stock worker"
WHOLE = "orcheo-dispatch, Beat, dispatcher and worker, no-op executor"
_EXECUTOR = {"ORCHEO_WORKER_EXECUTOR": "tests.bench.noop_executor:execute"}
MAIN = "worker's main process, proportional"
_SECONDS = ("process start to first begin", "s")
_CPU = ("CPU of the worker until then", "s")
_DEADLINE_SECONDS = 120.0
_REST_SECONDS = 5
_PAUSE_SECONDS = 0.01
_PUBLISHED = "SELECT EXISTS (SELECT FROM orcheo_dispatch.dispatch WHERE state = 'published')"
_BEGUN = "SELECT EXTRACT(epoch FROM min(begun_at))::float8 FROM orcheo_dispatch.dispatch"
_STARTED = """
SELECT EXTRACT(epoch FROM min((payload ->> 'started_at')::timestamptz))::float8 FROM workflow_runs
"""


def measure(setting: Setting, scale: Scale) -> Measurement:
    """Start each in turn with a run that waits for it; then let processes rest, and look at their memory."""
    # Tables that are made at the first run are there before any is timed.
    _with_orcheo(setting)()
    small: Mapping[str, Callable[[], Values]] = {NOOP: _with_noop(setting), WHOLE: _whole(setting)}
    # For comparison, without a target: they take long.
    large: Mapping[str, Callable[[], Values]] = {ORCHEO: _with_orcheo(setting), STOCK: _stock(setting)}
    series = in_turn(scale, small, warm_up=False) + in_turn(
        replace(scale, rounds=min(2, scale.rounds)), large, warm_up=False
    )
    series += _at_rest(setting, scale)
    return _measurement(tuple(series))


def _with_noop(setting: Setting) -> Callable[[], Values]:
    def once() -> Values:
        setting.empty()
        with setting.ours(_EXECUTOR, workers=0):
            runs.insert(setting, 1)
            until(lambda: setting.value(_PUBLISHED), seconds=_DEADLINE_SECONDS, what="message")
            return _start(setting, _ours("worker"), _BEGUN, _EXECUTOR)

    return once


def _with_orcheo(setting: Setting) -> Callable[[], Values]:
    workflow_id = setting.workflow(WORKFLOW)

    def once() -> Values:
        setting.empty()
        with setting.ours(workers=0):
            setting.api.fire_webhook(workflow_id, {"name": "Ada"})
            until(lambda: setting.value(_PUBLISHED), seconds=_DEADLINE_SECONDS, what="message")
            return _start(setting, _ours("worker"), _BEGUN)

    return once


def _stock(setting: Setting) -> Callable[[], Values]:
    workflow_id = setting.workflow(WORKFLOW)
    program = [sys.executable, "-m", "celery", "-A", "orcheo_backend.worker.celery_app"]

    def once() -> Values:
        setting.empty()
        setting.api.fire_webhook(workflow_id, {"name": "Ada"})
        command = [*program, "worker", "--concurrency=2", "--loglevel=INFO"]
        return _start(setting, command, _STARTED)

    return once


def _whole(setting: Setting) -> Callable[[], Values]:
    def once() -> Values:
        setting.empty()
        runs.insert(setting, 1)
        variables = {**setting.variables, **_EXECUTOR}
        with ExitStack() as stack:
            stack.enter_context(setting.process("beat", _ours("beat"), **variables))
            stack.enter_context(setting.process("dispatcher", _ours("dispatcher"), **variables))
            return _start(setting, _ours("worker"), _BEGUN, _EXECUTOR)

    return once


def _start(setting: Setting, command: list[str], query: str, variables: Mapping[str, str] | None = None) -> Values:
    """Start a worker; return the seconds from its start, by the kernel, to the first begin, by the database's clock.

    Both are the clock of this machine. The process is stopped when all runs have ended.
    """
    with setting.process("worker", command, **{**setting.variables, **(variables or {})}) as started:
        at_start: float = psutil.Process(started.process.pid).create_time()
        until(
            lambda: started.at_work() and setting.value(query) is not None,
            seconds=_DEADLINE_SECONDS,
            what="first begin",
            pause=_PAUSE_SECONDS,
        )
        used = cpu_seconds([started.process.pid])
        seconds = float(setting.value(query)) - at_start
        setting.until_terminal()
    return {_SECONDS: seconds, _CPU: used}


def _ours(kind: str) -> list[str]:
    return [sys.executable, "-m", "orcheo_dispatch.ops.cli", kind]


def _at_rest(setting: Setting, scale: Scale) -> list[Series]:
    """Return the memory of each process after it has been started and has executed one run, if any."""
    found: list[Series] = []
    workflow_id = setting.workflow(WORKFLOW)
    executors: dict[str, Mapping[str, str]] = {NOOP: _EXECUTOR, ORCHEO: {}}
    for system, variables in executors.items():
        setting.empty()
        with setting.ours(variables) as running:
            setting.api.fire_webhook(workflow_id, {"name": "Ada"})
            setting.until_terminal()
            time.sleep(scale.size(_REST_SECONDS, 1))
            groups = ("beat", "dispatcher", "worker") if system == NOOP else ("worker",)
            for group in groups:
                name = "orcheo-dispatch" if group != "worker" else system
                found += _memory(running, group, name)
            if system == ORCHEO:
                main = psutil.Process(running.pids("worker")[0]).memory_full_info()
                found.append(Series(system, "worker's main process, resident", "MB", (main.rss / MEGABYTE,)))
                found.append(Series(system, MAIN, "MB", (main.pss / MEGABYTE,)))
    setting.empty()
    with setting.stock() as running:
        setting.api.fire_webhook(workflow_id, {"name": "Ada"})
        setting.until_terminal()
        time.sleep(scale.size(_REST_SECONDS, 1))
        found += _memory(running, "worker", f"{STOCK}, 2 processes and their parent")
    return found


def _memory(running: Running, group: str, name: str) -> list[Series]:
    pids = running.pids(group)
    return [
        Series(name, f"{group}, resident", "MB", (resident_bytes(pids) / MEGABYTE,)),
        Series(name, f"{group}, proportional", "MB", (proportional_bytes(pids) / MEGABYTE,)),
    ]


def _measurement(series: tuple[Series, ...]) -> Measurement:
    found = Measurement("start", TITLE, series)
    first = next(each.spread for each in series if each.system == NOOP and each.metric == _SECONDS[0])
    targets = [Target("first begin, no-op executor", first, 5.0, "s", at_least=False)]
    small = [each for each in series if each.metric in ("beat, resident", "dispatcher, resident")]
    targets += [Target(each.metric, each.spread, 90, "MB", at_least=False) for each in small]
    targets += [Target(each.metric, each.spread, 100, "MB", at_least=False) for each in series if each.metric == MAIN]
    return Measurement(
        found.name,
        found.title,
        series,
        tuple(targets),
        curves=(Curve("start", "From process start to first begin", _SECONDS[0]),),
        notes=(_NOTE,),
    )


_NOTE = (
    "A worker is started while one published run waits for it; the stock worker while one pushed run does. From the "
    "start of the process, as the kernel knows it, to the begin, by the database's clock on the same machine. With "
    "Beat and dispatcher: all three are started at once beside one pending run. Memory is that of the whole process "
    f"tree {_REST_SECONDS} s after one run: resident (RSS) counts shared pages in each process, proportional (PSS) "
    "divides them among those who share them."
)
