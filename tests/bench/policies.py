"""Measurement: what 1,000 policies add to a claim, with a million runs pending."""

from __future__ import annotations

import statistics
from contextlib import ExitStack

from tests.bench.claim_tables import STRETCH, Table, Tables, without_checkpoints
from tests.bench.claimer import Claimers, claimers
from tests.bench.result import Measurement, Series, Target, ratios
from tests.bench.setting import Scale, Setting

_PENDING, _FEW = 1_000_000, 20_000
_POLICIES = 1_000
_ROOMS = (100, 1_000)
_TIME, _CPU = "time of a claim", "CPU of a claim, dispatcher and Postgres"
_WITH, _WITHOUT = f"{_POLICIES:,} policies", "no policy"
# Of workflows that have pending runs, and of many that have none. No limit is reached: the same runs are claimed.
_SET = """
INSERT INTO orcheo_dispatch.policy (workflow_id, max_running, rate_runs, rate_seconds, priority)
SELECT 'workflow-' || n, 1000000, CASE WHEN n % 2 = 0 THEN 1000000000 END, CASE WHEN n % 2 = 0 THEN 60 END, n % 3
  FROM generate_series(0, {policies} - 1) AS n
"""


def measure(setting: Setting, scale: Scale) -> Measurement:
    """Measure stretches of claims with and without policies in turn, in one database."""
    found: dict[tuple[str, str, int], list[float]] = {}
    with ExitStack() as stack:
        table = stack.enter_context(Tables(setting)).add()
        pool = stack.enter_context(claimers(1))
        stack.enter_context(without_checkpoints(setting))
        table.fill(_FEW if scale.quick else _PENDING)
        for number in range(scale.rounds):
            # Neither is always first.
            for system in (_WITH, _WITHOUT) if number % 2 else (_WITHOUT, _WITH):
                _decide(table, system)
                for room in _ROOMS:
                    _note(found, system, room, table, pool)
    series = tuple(
        Series(system, metric, "ms", tuple(values), room) for (system, metric, room), values in found.items()
    )
    targets = tuple(
        Target(
            f"{metric} of {room:,} runs, of that with no policy",
            ratios(found[_WITH, metric, room], found[_WITHOUT, metric, room]),
            1.1,
            "times",
            at_least=False,
        )
        for metric in (_TIME, _CPU)
        for room in _ROOMS
    )
    return Measurement("policies", "Claims with policies", series, targets, notes=(_NOTE,))


def _decide(table: Table, system: str) -> None:
    table.connection.execute("DELETE FROM orcheo_dispatch.policy")
    if system == _WITH:
        table.connection.execute(_SET.format(policies=_POLICIES))
    table.connection.execute("VACUUM (ANALYZE) orcheo_dispatch.policy, orcheo_dispatch.rate_use")


def _note(found: dict[tuple[str, str, int], list[float]], system: str, room: int, table: Table, pool: Claimers) -> None:
    by_policy = system == _WITH
    # Untimed: after a change of the table the first statement is planned anew.
    table.stretch(pool, room=room, by_policy=by_policy)
    stretch = table.stretch(pool, room=room, by_policy=by_policy)
    cpu = stretch.cpu_seconds + stretch.postgres_cpu_seconds
    found.setdefault((system, _TIME, room), []).append(1000 * statistics.median(stretch.claim_seconds))
    found.setdefault((system, _CPU, room), []).append(1000 * cpu / STRETCH)


_NOTE = (
    f"One dispatcher's own claim, {STRETCH} claims a stretch, as in the measurement of claims. The policies limit the "
    "running runs of 1,000 workflows and the rate of every second one, and give priorities; none is reached, so that "
    "both claim as many runs. With limits, a claim takes a lock first and counts its runs afterwards: two statements "
    "more."
)
