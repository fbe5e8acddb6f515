"""A trivial Orcheo workflow, all runs pending: beside the stock worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from orcheo_dispatch.ops.demo import WORKFLOW
from tests.bench.noop import PARTS
from tests.bench.result import Curve, Measurement, Series, Spread, Target, ratios
from tests.bench.rounds import Values, in_turn, say
from tests.bench.runs import Fired
from tests.bench.setting import Running, Scale, Setting
from tests.bench.statements import counted

TITLE = "A trivial Orcheo workflow, all runs pending"
STOCK = "stock worker, --concurrency=2"
ONE, TWO = "orcheo-dispatch, 1 worker", "orcheo-dispatch, 2 workers"
ISOLATED = "orcheo-dispatch, 1 worker, a process for each run"
_PROCESS = {"ORCHEO_WORKER_ISOLATION": "process"}
RATE, CPU = ("rate", "runs/s"), ("CPU, all", "ms/run")
type Start = Callable[[], AbstractContextManager[Running]]

# Two stock processes race for the checkpointer's tables on an empty database; nothing else may fail.
_MAY_FAIL = 1
_WARM_UP_RUNS = 20
_COUNTED_RUNS = 200

# By what the API's own tables say, which both systems write.
_WINDOW = """
SELECT count(*) FILTER (WHERE status = 'succeeded') AS runs,
       EXTRACT(epoch FROM max((payload ->> 'completed_at')::timestamptz)
                          - min((payload ->> 'started_at')::timestamptz))::float8 AS seconds
  FROM workflow_runs
"""
_WRITTEN = "SELECT pg_current_wal_insert_lsn() - '0/0'"


def measure(setting: Setting, scale: Scale) -> Measurement:
    """Measure the stock worker and ours in turn, then count statements in a round of its own."""
    count, few = scale.size(600, 40), scale.size(200, 20)
    say(f"  firing {count} webhooks")
    fired = Fired(setting, WORKFLOW, count)
    systems: Mapping[str, tuple[Start, int]] = {
        STOCK: (setting.stock, count),
        ONE: (lambda: setting.ours(workers=1), count),
        TWO: (lambda: setting.ours(workers=2), count),
        ISOLATED: (lambda: setting.ours(_PROCESS), few),
    }
    with setting.without_api():
        rounds = {name: round_of(setting, fired, start, number) for name, (start, number) in systems.items()}
        series = in_turn(scale, rounds, warm_up=False)
        statements = [_statements(setting, fired, name, systems[name][0]) for name in (STOCK, ONE)]
    curves = (
        Curve("trivial-rate", "Trivial runs a second", RATE[0]),
        Curve("trivial-cpu", "CPU a trivial run, by process", CPU[0], parts=PARTS),
    )
    note = (
        f"{count:,} webhooks fired once through the API; each round puts the same rows, run slots and pushed messages "
        "back at once, when all processes are up and have executed 20 others. "
        "The rate is from the first `started_at` to the last `completed_at`. "
        f"Default settings throughout, but for `ORCHEO_WORKER_ISOLATION=process` and {few} runs where each run has a "
        "process; a worker of ours has a runner for each core, the stock worker two processes, without its Beat. "
        "WAL is what Postgres wrote from the first row to the last terminal status, full pages included. "
        "Statements are counted in a round of their own, from the server's log."
    )
    notes = (note, *(words for _, words in statements))
    series += [each for each, _ in statements]
    return Measurement("trivial", TITLE, tuple(series), _targets(series), curves, notes)


def round_of(setting: Setting, fired: Fired, start: Start, count: int) -> Callable[[], Values]:
    """Return what executes the first `count` fired runs once, with the processes that `start` starts."""

    def once() -> Values:
        with _warm(setting, fired, start) as running:
            used = running.used()
            fired.restore(count)
            before = setting.value(_WRITTEN)
            setting.until_terminal()
            wal = float(setting.value(_WRITTEN) - before)
            used.stop()
        (found,) = setting.rows(_WINDOW)
        if found["runs"] < count - _MAY_FAIL:
            raise RuntimeError(f"{found['runs']} of {count} runs succeeded: {setting.statuses()}")
        cpu = {(f"CPU, {name}", "ms/run"): 1000 * seconds / count for name, seconds in used.cpu.items()}
        return {
            RATE: found["runs"] / found["seconds"],
            **cpu,
            CPU: 1000 * sum(used.cpu.values()) / count,
            ("WAL", "KB/run"): wal / 1024 / count,
        }

    return once


@contextmanager
def _warm(setting: Setting, fired: Fired, start: Start) -> Iterator[Running]:
    """Start the processes and have them execute some runs, then forget those."""
    setting.empty()
    with start() as running:
        fired.restore(min(_WARM_UP_RUNS, fired.count))
        setting.until_terminal()
        setting.forget_runs()
        yield running


def _statements(setting: Setting, fired: Fired, name: str, start: Start) -> tuple[Series, str]:
    """Return how many statements a run takes, and in words who sends them."""
    count = min(_COUNTED_RUNS, fired.count)
    with _warm(setting, fired, start), counted(setting) as statements:
        fired.restore(count)
        setting.until_terminal()
    senders = ", ".join(f"{number / count:.1f} {sender.strip('[]')}" for sender, number in statements.most_common())
    say(f"  statements of {name}, a run: {senders}")
    series = Series(name, "database statements", "a run", (statements.total() / count,))
    return series, f"Statements a run by `application_name`, {name}: {senders}."


def _targets(series: list[Series]) -> tuple[Target, ...]:
    found = {(each.system, each.metric): each.values for each in series}
    rate = ratios(found[ONE, RATE[0]], found[STOCK, RATE[0]])
    cpu = ratios(found[ONE, CPU[0]], found[STOCK, CPU[0]])
    one = ratios(found[ONE, RATE[0]], found[TWO, RATE[0]])
    more = Spread.of([each - shared for each, shared in zip(found[ISOLATED, CPU[0]], found[ONE, CPU[0]], strict=True)])
    return (
        Target("at least 8 times the stock worker's runs/s with as many processes", rate, 8.0, "times", at_least=True),
        Target("at most a third of its CPU a run", cpu, 1 / 3, "of it", at_least=False),
        Target("one worker of ours, of the runs/s of two", one, 1.0, "times", at_least=True),
        Target("CPU that a process for each run costs more", more, 30, "ms/run", at_least=False),
    )
