"""The alerts, as in ops/prometheus/alerts.yml: name, severity, duration and condition. A test compares the two."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from orcheo_dispatch.shared.alerts import conditions as of
from orcheo_dispatch.shared.alerts.conditions import Condition
from orcheo_dispatch.shared.ledger.model import ProcessKind


class Severity(StrEnum):
    """How urgent an alert is."""

    CRITICAL = "critical"
    WARNING = "warning"


class Seer(StrEnum):
    """Who looks whether a condition is true."""

    TELLER = "the dispatcher that tells, for the whole system"
    DISPATCHERS = "each dispatcher, about itself"
    WORKERS = "each worker, about itself"
    EACH = "each dispatcher and each worker, about itself"
    WORKER_THAT_TELLS = "the worker that tells while no dispatcher does"
    MEMORY = "each dispatcher, in its memory"


@dataclass(frozen=True, slots=True)
class Rule:
    """One alert. `hold`: how long its condition must be true before a message is sent (seconds)."""

    name: str
    severity: Severity
    hold: float
    text: str
    """What the message says; `{value}` is the figure, `{subject}` the subject."""
    condition: Condition
    seer: Seer = Seer.TELLER
    percent: bool = False
    """Whether the figure is a share."""


_CRITICAL, _WARNING = Severity.CRITICAL, Severity.WARNING
BROKER, DATABASE = "OrcheoBrokerUnavailable", "OrcheoDatabaseUnavailable"

RULES = (
    Rule(
        "OrcheoRunsPendingTooLong",
        _CRITICAL,
        60,
        "{value} runs have been pending for more than five minutes",
        of.above("pending_late_runs", 0),
    ),
    Rule("OrcheoBacklogDeep", _WARNING, 600, "{value} runs are pending", of.above("pending_runs", 1000)),
    Rule("OrcheoQueueFull", _WARNING, 600, "The queue in Redis is full: {value} messages wait", of.queue_full),
    Rule(
        "OrcheoRunsStuck",
        _WARNING,
        120,
        "{value} runs are running although their worker's lease has expired",
        of.above("stuck_runs", 0),
    ),
    Rule(
        "OrcheoRunsLost",
        _WARNING,
        0,
        "{value} runs lost their worker within 15 minutes",
        of.runs_reaped,
        Seer.DISPATCHERS,
    ),
    Rule("OrcheoRunsFail", _WARNING, 900, "{value} of the runs fail", of.runs_fail, percent=True),
    Rule(
        "OrcheoRunsUnclaimed",
        _WARNING,
        300,
        "{value} runs are pending that no dispatcher will claim",
        of.above("unclaimed_runs", 0),
    ),
    Rule(
        "OrcheoRunsBegunElsewhere",
        _WARNING,
        120,
        "{value} runs of the last ten minutes were begun by the API itself or by Orcheo's own worker",
        of.above("begun_elsewhere_runs", 0),
    ),
    Rule("OrcheoSlotsDue", _WARNING, 300, "{value} run slots are not given back", of.above("due_slots", 0)),
    Rule("OrcheoNoWorker", _CRITICAL, 60, "No worker is alive", of.equals("alive_processes", 0, kind="worker")),
    Rule("OrcheoNoDispatcher", _CRITICAL, 120, "No dispatcher is alive", of.no_dispatcher, Seer.WORKER_THAT_TELLS),
    Rule(
        "OrcheoWorkersCrash",
        _WARNING,
        0,
        "{value} workers vanished within 24 hours",
        of.at_least("vanished_processes", 1, kind="worker"),
    ),
    Rule(
        "OrcheoProcessRestarts",
        _WARNING,
        0,
        "{subject}: {value} processes that started within an hour vanished",
        of.restarts,
    ),
    Rule("OrcheoPollStalled", _CRITICAL, 60, "No poll succeeds", of.equals("alive_processes", 0, kind="dispatcher")),
    Rule(
        "OrcheoPollsSlow",
        _WARNING,
        600,
        "{subject}: {value} polls took longer than a second within 10 minutes",
        of.polls_slow,
        Seer.DISPATCHERS,
    ),
    Rule(
        "OrcheoRunsRefused",
        _WARNING,
        300,
        "Postgres refuses the step {subject} for {value} runs",
        of.runs_refused,
        Seer.DISPATCHERS,
    ),
    Rule("OrcheoBeatSilent", _WARNING, 60, "No dispatcher receives ticks of Beat", of.equals("beat_silent", 1)),
    Rule("OrcheoCronSilent", _CRITICAL, 60, "Cron triggers were last dispatched {value} seconds ago", of.cron_silent),
    Rule(
        "OrcheoLoopBlocked",
        _WARNING,
        0,
        "{subject}: a run blocks the event loop of a runner",
        of.loop_blocked,
        Seer.WORKERS,
    ),
    Rule(
        "OrcheoConsumerStalls",
        _WARNING,
        0,
        "{subject}: stopped taking messages {value} times within 15 minutes",
        of.grew("consumer_stalls_total", 900),
        Seer.EACH,
    ),
    Rule(
        "OrcheoMessagesMalformed",
        _WARNING,
        0,
        "{subject}: {value} messages in the queue of runs were not ours",
        of.grew("messages_total", 900, result="malformed"),
        Seer.WORKERS,
    ),
    Rule(
        DATABASE,
        _CRITICAL,
        60,
        "This dispatcher does not reach Postgres",
        of.equals("database_up", 0),
        Seer.MEMORY,
    ),
    Rule(BROKER, _CRITICAL, 60, "No dispatcher reaches Redis", of.equals("broker_up", 0)),
    Rule(
        "OrcheoDatabaseErrors",
        _WARNING,
        300,
        "{subject}: {value} errors of Postgres within 5 minutes",
        of.grew("database_errors_total", 300),
        Seer.EACH,
    ),
    Rule(
        "OrcheoBrokerErrors",
        _WARNING,
        300,
        "{subject}: {value} errors of Redis within 5 minutes",
        of.grew("broker_errors_total", 300),
        Seer.EACH,
    ),
    Rule(
        "OrcheoTransactionOld",
        _WARNING,
        600,
        "A transaction has been open for {value} others",
        of.above("oldest_transaction_age_transactions", 500_000),
    ),
)
BY_NAME = {rule.name: rule for rule in RULES}
NOT_SENT = {
    "OrcheoProcessDown": "only Prometheus knows which processes should be there; `OrcheoNoWorker`, "
    "`OrcheoNoDispatcher`, `OrcheoBeatSilent` and `OrcheoWorkersCrash` cover the rest",
}
"""Rules of Prometheus for which no message is sent, and why."""

CAUSED_BY = {
    "OrcheoPollStalled": BROKER,
    "OrcheoBeatSilent": BROKER,
    "OrcheoCronSilent": BROKER,
    "OrcheoConsumerStalls": BROKER,
    "OrcheoBrokerErrors": BROKER,
    "OrcheoDatabaseErrors": DATABASE,
}
"""Alerts that are not sent while the outage that causes them lasts, and for some minutes after it."""

_SEEN_BY = {
    ProcessKind.DISPATCHER: {Seer.TELLER, Seer.DISPATCHERS, Seer.EACH},
    ProcessKind.WORKER: {Seer.WORKER_THAT_TELLS, Seer.WORKERS, Seer.EACH},
}
_OF_TELLER = {Seer.TELLER, Seer.WORKER_THAT_TELLS}


def seen_by(kind: ProcessKind, *, tells: bool) -> list[Rule]:
    """Return the rules whose conditions a process of this kind looks at."""
    return [rule for rule in RULES if rule.seer in _SEEN_BY[kind] and (tells or rule.seer not in _OF_TELLER)]


def told_by(kind: ProcessKind) -> list[Rule]:
    """Return the rules whose messages a process of this kind sends: a dispatcher all, a worker those of workers."""
    if kind is ProcessKind.DISPATCHER:
        return [rule for rule in RULES if rule.seer is not Seer.MEMORY]
    return [rule for rule in RULES if rule.seer in _SEEN_BY[kind]]
