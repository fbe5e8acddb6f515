"""No-op runs from pending row to terminal status, beside no-op jobs on Procrastinate, PgQueuer, Awa and DBOS."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from tests.bench import runs
from tests.bench.peers.queues import Awa, Dbos, PgQueuer, Procrastinate, Queue
from tests.bench.result import Curve, Measurement, Series, Target, ratios
from tests.bench.rounds import Values, in_turn, say
from tests.bench.setting import Running, Scale, Setting
from tests.bench.usage import until

TITLE = "No-op runs: from pending row to terminal status"
OURS = "orcheo-dispatch"
RATE = ("rate", "runs/s")
CPU = "CPU, all"
PARTS = ("CPU, worker", "CPU, dispatcher", "CPU, beat", "CPU, postgres", "CPU, redis")
SETTINGS = {
    "ORCHEO_WORKER_EXECUTOR": "tests.bench.noop_executor:execute",
    "ORCHEO_DISPATCH_BATCH_SIZE": "1000",
    "ORCHEO_DISPATCH_MAX_QUEUED": "4000",
    "ORCHEO_WORKER_CONCURRENCY": "1000",
}
"""For throughput; all else is as by default."""
_CONCURRENCY = 32
_ONE_MANAGER = {"BENCH_MANAGERS": "1", "BENCH_BATCH": "10"}
_TUNED = {"BENCH_MANAGERS": "5", "BENCH_BATCH": "100"}
# A peer's rate does not depend on how long it goes on; its own backlog does not end within this.
_BOX_SECONDS = 4.0
_PROCESSES = (1, 2)
# It enqueues one at a time; more would not end within the seconds above.
_DBOS_JOBS = 2_500
_WARM_UP_RUNS = 200

_WINDOW = """
SELECT count(*) FILTER (WHERE outcome = 'succeeded') AS runs,
       EXTRACT(epoch FROM max(settled_at) - min(claimed_at))::float8 AS seconds,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY EXTRACT(epoch FROM begun_at - claimed_at))::float8 AS to_begin,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY EXTRACT(epoch FROM settled_at - begun_at))::float8 AS to_settle
  FROM orcheo_dispatch.dispatch
"""


def measure(setting: Setting, scale: Scale) -> Measurement:
    """Measure ours and the peers, in turn. A peer that is not installed is left out, and the notes say so."""
    count = scale.size(20_000, 300)
    systems: dict[str, Callable[[], Values]] = {
        _name(OURS, processes): _ours(setting, count, processes) for processes in _PROCESSES
    }
    missing = [
        peer
        for peer in ("procrastinate", "pgqueuer", "asyncpg", "awa", "dbos")
        if importlib.util.find_spec(peer) is None
    ]
    if not missing:
        systems |= _peers(setting, count)
    with setting.without_api():
        series = in_turn(scale, systems, warm_up=False)
    notes = [_note(count)]
    if missing:
        notes.append(f"Without the peers: {', '.join(missing)} not installed.")
    curves = (
        Curve("noop-rate", "No-op runs a second, with one and with two workers or processes", RATE[0]),
        Curve("noop-cpu", "CPU a no-op run, by process", CPU, parts=PARTS),
    )
    return Measurement("noop", TITLE, tuple(series), _targets(series), curves, tuple(notes))


def _ours(setting: Setting, count: int, processes: int) -> Callable[[], Values]:
    def once() -> Values:
        setting.empty()
        with setting.ours(SETTINGS, workers=processes) as running:
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
        return {
            RATE: count / found["seconds"],
            **_cpu(used.cpu, count),
            ("claim to begin, median", "ms"): 1000 * found["to_begin"],
            ("begin to settle, median", "ms"): 1000 * found["to_settle"],
        }

    return once


def _peers(setting: Setting, count: int) -> Mapping[str, Callable[[], Values]]:
    say("  making the peers' queues")
    procrastinate, pgqueuer, awa, dbos = Procrastinate(setting), PgQueuer(setting), Awa(setting), Dbos(setting)
    few = {"BENCH_DSN": procrastinate.dsn, "BENCH_CONNECTIONS": "20"}
    one = {"BENCH_DSN": pgqueuer.dsn, **_ONE_MANAGER}
    tuned = {"BENCH_DSN": pgqueuer.dsn, **_TUNED}
    workers = {"BENCH_DSN": awa.dsn, "BENCH_CONCURRENCY": str(_CONCURRENCY)}
    systems: dict[str, Callable[[], Values]] = {}
    for name, queue, command, variables in (
        ("Procrastinate", procrastinate, procrastinate.command(_CONCURRENCY), few),
        ("PgQueuer", pgqueuer, pgqueuer.command(), one),
        ("PgQueuer, tuned", pgqueuer, pgqueuer.command(), tuned),
        ("Awa", awa, awa.command(), workers),
        ("DBOS", dbos, dbos.command(), {"BENCH_DSN": dbos.dsn}),
    ):
        jobs = min(count, _DBOS_JOBS) if queue is dbos else count
        for processes in _PROCESSES:
            systems[_name(name, processes)] = _peer(setting, queue, command, variables, jobs, processes)
    return systems


def _peer(
    setting: Setting, queue: Queue, command: list[str], variables: dict[str, str], count: int, processes: int
) -> Callable[[], Values]:
    def once() -> Values:
        queue.fill(count)
        with ExitStack() as stack:
            running = Running(setting)
            for _ in range(processes):
                running.processes.append(stack.enter_context(setting.process("worker", command, **variables)))
            until(lambda: queue.progress().ended > 0, seconds=60, what="first job of the peer", pause=0.01)
            at_first, used = queue.progress(), running.used()
            end = time.monotonic() + _BOX_SECONDS
            until(
                lambda: queue.progress().ended >= count or time.monotonic() > end,
                seconds=2 * _BOX_SECONDS,
                what="end of the jobs",
                pause=0.25,
            )
            used.stop()
            found = queue.progress()
        return {RATE: found.ended / found.seconds, **_cpu(used.cpu, max(1, found.ended - at_first.ended))}

    return once


def _cpu(seconds: Mapping[str, float], count: int) -> dict[tuple[str, str], float]:
    each = {(f"CPU, {name}", "ms/run"): 1000 * used / count for name, used in seconds.items()}
    return {**each, (CPU, "ms/run"): 1000 * sum(seconds.values()) / count}


_TARGETS = {"Procrastinate": 2.0, "PgQueuer": 1.0, "Awa": 2.0, "DBOS": 2.0}


def _targets(series: list[Series]) -> tuple[Target, ...]:
    """Compare the best of ours with the best of each peer, whatever number of processes that has."""
    rates = {each.system: each for each in series if each.metric == RATE[0]}
    targets = []
    for peer, times in _TARGETS.items():
        if _name(peer, 1) in rates:
            ours, theirs = _best(rates, OURS), _best(rates, peer)
            found = ratios(ours.values, theirs.values)
            targets.append(Target(f"at least {times:g} times {peer}", found, times, "times", at_least=True))
    return tuple(targets)


def _best(rates: Mapping[str, Series], system: str) -> Series:
    return max((rates[_name(system, processes)] for processes in _PROCESSES), key=lambda each: each.spread.median)


def _name(system: str, processes: int) -> str:
    if system == OURS:
        return f"{system}, {processes} worker{'s' if processes > 1 else ''}"
    return f"{system}, {processes} process{'es' if processes > 1 else ''}"


def _note(count: int) -> str:
    settings = " ".join(f"`{name}={value}`" for name, value in SETTINGS.items())
    return (
        f"{count:,} rows, committed at once; the rate is from the first that is taken to the last that has ended, by "
        f"the database's clock. Ours: {settings}, one Beat, one dispatcher. Procrastinate: `--concurrency "
        f"{_CONCURRENCY}`, 20 connections, its log at `warning`. PgQueuer, with its settings for autovacuum, on "
        "asyncpg and uvloop: one manager a process and batches of 10, which are its defaults; tuned: five managers a "
        "process, as its own benchmark has them, and batches of 100. Awa: its queue storage, "
        f"{_CONCURRENCY} workers a process. DBOS: workflows without a step in a queue without limits, {_DBOS_JOBS:,} "
        "of them. The peers' jobs are there before their workers "
        f"start; who has not ended after {_BOX_SECONDS:g} s is stopped."
    )
