"""The conditions of the alerts: each returns the figure for each subject of which it is true, and None if unknown.

They read the metrics that the rules in ops/prometheus/alerts.yml read. Most of these a dispatcher reads from the
database for the whole system; those of single processes are read by each process about itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from orcheo_dispatch.shared.alerts.readings import Readings

type Found = dict[str, float]
type Condition = Callable[[Readings], Found | None]

_FAILING_SHARE = 0.5
_QUEUE_SHARE = 0.9
_CRON_INTERVALS = 5
_BLOCKED_SECONDS = 5.0
_FAST_SHARE = 0.95


def above(name: str, limit: float, **labels: str) -> Condition:
    """Return the condition that a gauge is above `limit`."""
    return _compared(operator.gt, name, limit, labels)


def at_least(name: str, limit: float, **labels: str) -> Condition:
    """Return the condition that a gauge is `limit` or more."""
    return _compared(operator.ge, name, limit, labels)


def equals(name: str, number: float, **labels: str) -> Condition:
    """Return the condition that a gauge has this value."""
    return _compared(operator.eq, name, number, labels)


def grew(name: str, seconds: float, **labels: str) -> Condition:
    """Return the condition that a counter grew within the last `seconds`."""

    def condition(readings: Readings) -> Found:
        number = readings.increase(name, seconds, **labels)
        return {"": number} if number > 0 else {}

    return condition


def runs_reaped(readings: Readings) -> Found:
    """Whether this dispatcher found runs that lost their worker within 15 minutes."""
    number = sum(readings.increase("runs_reaped_total", 900, outcome=outcome) for outcome in ("lost", "requeued"))
    return {"": number} if number > 0 else {}


def runs_fail(readings: Readings) -> Found:
    """Whether more than half of the runs that ended within 15 minutes failed."""
    facts = readings.facts
    share = facts.failed / facts.ended if facts.ended else 0.0
    return {"": share} if share > _FAILING_SHARE else {}


def queue_full(readings: Readings) -> Found | None:
    """Whether as many messages wait in Redis as may."""
    messages, limit = readings.value("queue_messages"), readings.value("queue_limit_messages")
    if messages is None or limit is None:
        return None
    return {"": messages} if messages >= _QUEUE_SHARE * limit else {}


def runs_refused(readings: Readings) -> Found:
    """Return the steps that Postgres refuses for runs of this dispatcher."""
    return {step: runs for step, runs in readings.values("refused_runs", "step").items() if runs > 0}


def restarts(readings: Readings) -> Found:
    """Where processes vanish again and again."""
    return dict(readings.facts.restarts)


def polls_slow(readings: Readings) -> Found:
    """Whether more than 5 % of the polls of this dispatcher took longer than a second within 10 minutes."""
    polls = readings.increase("poll_seconds_count", 600)
    fast = readings.increase("poll_seconds_bucket", 600, le="1.0")
    return {"": polls - fast} if polls and fast / polls < _FAST_SHARE else {}


def cron_silent(readings: Readings) -> Found | None:
    """Whether no process has dispatched cron triggers for five intervals. Never true with ORCHEO_DISPATCH_CRON=off."""
    interval = readings.value("cron_interval_seconds")
    if interval is None:
        return {}
    age = readings.value("cron_age_seconds")
    if age is None:
        return None
    return {"": age} if age > _CRON_INTERVALS * interval else {}


def loop_blocked(readings: Readings) -> Found:
    """Whether a run blocks, or blocked within 10 minutes, the event loop of a runner of this worker."""
    lag, blocks = readings.value("loop_lag_seconds") or 0.0, readings.increase("loop_blocks_total", 600)
    return {"": max(lag, blocks)} if lag > _BLOCKED_SECONDS or blocks > 0 else {}


def no_dispatcher(readings: Readings) -> Found | None:
    """Whether no dispatcher is alive. A dispatcher does not ask."""
    alive = readings.facts.dispatchers
    if alive is None:
        return {}
    return {"": 0.0} if alive == 0 else {}


def _compared(compare: Callable[[Any, Any], bool], name: str, number: float, labels: dict[str, str]) -> Condition:
    def condition(readings: Readings) -> Found | None:
        value = readings.value(name, **labels)
        if value is None:
            return None
        return {"": value} if compare(value, number) else {}

    return condition
