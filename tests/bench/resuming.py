"""What it costs to store each step before the next one, so that a lost run can be resumed; and how soon one is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from orcheo_dispatch.ops.demo import WORKFLOW as TRIVIAL
from tests.bench.result import Curve, Measurement, Series, Spread, Target, ratios
from tests.bench.rounds import Values, in_turn, say
from tests.bench.runs import Fired
from tests.bench.setting import Scale, Setting
from tests.bench.usage import until

TITLE = "Runs that can be resumed"
WORKFLOW = Path(__file__).parent / "workflows" / "steps.py"
STEPS = 8
_TRIVIAL_STEPS = 1
FAIL, RESUME = "fail", "resume"
_SHORT, _LONG = "a trivial run", f"a run of {STEPS} steps"
RATE, WAL, CPU = ("rate", "runs/s"), ("WAL", "KB/step"), ("CPU, all", "ms/run")
BEGIN = ("begin to first step", "ms")
_WARM_UP_RUNS = 20
_KEPT_STEPS = 4

_WINDOW = """
SELECT count(*) FILTER (WHERE status = 'succeeded') AS runs,
       EXTRACT(epoch FROM max((payload ->> 'completed_at')::timestamptz)
                          - min((payload ->> 'started_at')::timestamptz))::float8 AS seconds
  FROM workflow_runs
"""
# As a worker leaves runs behind that is lost in their fifth step, once they were reaped.
_LOSE = """
WITH kept AS (
    SELECT thread_id, checkpoint_id FROM checkpoints WHERE (metadata ->> 'step')::int = %(steps)s
), later AS (
    DELETE FROM checkpoints WHERE (metadata ->> 'step')::int > %(steps)s
), writes AS (
    DELETE FROM checkpoint_writes AS w
     WHERE EXISTS (SELECT FROM kept AS k WHERE k.thread_id = w.thread_id AND w.checkpoint_id >= k.checkpoint_id)
), ledger AS (
    UPDATE orcheo_dispatch.dispatch SET outcome = 'requeued', reason = 'worker lost'
)
UPDATE workflow_runs
   SET status = 'pending', payload = payload || '{"status": "pending", "started_at": null, "completed_at": null}'
"""
_BEGINS = """
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY 1000 * (
           (payload #>> ARRAY['output_payload', 'final_state', 'node_results', %(step)s, 'began'])::float8
           - EXTRACT(epoch FROM (payload ->> 'started_at')::timestamptz)))::float8 AS median,
       count(*) FILTER (WHERE status = 'succeeded') AS runs
  FROM workflow_runs
"""


def measure(setting: Setting, scale: Scale) -> Measurement:
    """Measure both policies in turn, with short and with longer runs; then how soon a run begins and is resumed."""
    series: list[Series] = []
    for kind, workflow, steps, count in (
        (_SHORT, TRIVIAL, _TRIVIAL_STEPS, scale.size(1_000, 40)),
        (_LONG, WORKFLOW, STEPS, scale.size(300, 20)),
    ):
        say(f"  firing {count} webhooks")
        fired = Fired(setting, workflow, count)
        with setting.without_api():
            systems = {f"{policy}, {kind}": _round(setting, fired, policy, steps) for policy in (FAIL, RESUME)}
            series += in_turn(scale, systems, warm_up=False)
    fired = Fired(setting, WORKFLOW, scale.size(100, 10))
    with setting.without_api():
        series += in_turn(scale, {RESUME: lambda: _begins(setting, fired)}, warm_up=False)
    note = (
        "One worker, default settings but for `ORCHEO_DISPATCH_LOST_RUNS`; webhooks fired once through the API, the "
        "same rows put back for each round. WAL is what Postgres wrote from the first row to the last end, full pages "
        f"included, by steps. How soon a run begins: {fired.count} runs one after the other "
        "(`ORCHEO_WORKER_CONCURRENCY=1`), the median from `started_at` to the first step; then the same runs put back "
        f"as if their worker had been lost in step {_KEPT_STEPS + 1}, from `started_at` to that step."
    )
    curves = tuple(
        Curve(f"resuming-{name}", title, metric[0])
        for name, title, metric in (("rate", "Runs a second by policy", RATE), ("wal", "WAL a step by policy", WAL))
    )
    return Measurement("resuming", TITLE, tuple(series), _targets(series), curves, (note,))


def _round(setting: Setting, fired: Fired, policy: str, steps: int) -> Callable[[], Values]:
    def once() -> Values:
        setting.empty()
        with setting.ours({"ORCHEO_DISPATCH_LOST_RUNS": policy}) as running:
            fired.restore(min(_WARM_UP_RUNS, fired.count))
            setting.until_terminal()
            setting.forget_runs()
            used, written = running.used(), partial(setting.value, "SELECT pg_current_wal_insert_lsn() - '0/0'")
            fired.restore()
            before = written()
            setting.until_terminal()
            # The rows of a run that is terminal may still be written.
            until(lambda: _is_quiet(setting), seconds=30, what="end of all writes", pause=0.5)
            wal = float(written() - before)
            used.stop()
        (found,) = setting.rows(_WINDOW)
        if found["runs"] != fired.count:
            raise RuntimeError(f"{found['runs']} of {fired.count} runs succeeded: {setting.statuses()}")
        return {
            RATE: found["runs"] / found["seconds"],
            WAL: wal / 1024 / fired.count / steps,
            **{(f"CPU, {name}", CPU[1]): 1000 * seconds / fired.count for name, seconds in used.cpu.items()},
            CPU: 1000 * sum(used.cpu.values()) / fired.count,
        }

    return once


def _is_quiet(setting: Setting) -> bool:
    """Return whether all slots are returned: the last that is written for a run."""
    return not setting.value("SELECT EXISTS (SELECT FROM orcheo_dispatch.dispatch WHERE slot IN ('held', 'due'))")


def _begins(setting: Setting, fired: Fired) -> Values:
    """Return how soon a run begins its first step, and how soon one that is resumed begins its next."""
    setting.empty()
    values = {}
    with setting.ours({"ORCHEO_DISPATCH_LOST_RUNS": RESUME, "ORCHEO_WORKER_CONCURRENCY": "1"}):
        fired.restore(min(_WARM_UP_RUNS, fired.count))
        setting.until_terminal()
        setting.forget_runs()
        fired.restore()
        for how, step in (("new run", 1), ("resumed run", _KEPT_STEPS + 1)):
            setting.until_terminal()
            until(lambda: _is_quiet(setting), seconds=30, what="end of all writes", pause=0.5)
            (found,) = setting.rows(_BEGINS, {"step": f"step_{step}"})
            if found["runs"] != fired.count:
                raise RuntimeError(f"{found['runs']} of {fired.count} runs succeeded: {setting.statuses()}")
            values[f"{BEGIN[0]}, {how}", BEGIN[1]] = found["median"]
            if step == 1:
                setting.rows(_LOSE, {"steps": _KEPT_STEPS})
    return values


def _targets(series: list[Series]) -> tuple[Target, ...]:
    found = {(each.system, each.metric): each.values for each in series}

    def ratio(kind: str, metric: tuple[str, str]) -> Spread:
        return ratios(found[f"{RESUME}, {kind}", metric[0]], found[f"{FAIL}, {kind}", metric[0]])

    new, resumed = (found[RESUME, f"{BEGIN[0]}, {how}"] for how in ("new run", "resumed run"))
    more = Spread.of([later - first for first, later in zip(new, resumed, strict=True)])
    return (
        Target(f"runs/s of `resume`, of those of `fail`: {_SHORT}", ratio(_SHORT, RATE), 0.85, "times", at_least=True),
        Target(f"runs/s of `resume`, of those of `fail`: {_LONG}", ratio(_LONG, RATE), 0.85, "times", at_least=True),
        Target(f"WAL a step: {_SHORT}", ratio(_SHORT, WAL), 1.5, "times", at_least=False),
        Target(f"WAL a step: {_LONG}", ratio(_LONG, WAL), 1.5, "times", at_least=False),
        Target("begin of a resumed run takes more than that of a new one", more, 20, "ms", at_least=False),
    )
