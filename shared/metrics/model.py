"""The metrics of our processes, `orcheo_dispatch_*`: one class per kind of process, one method per event.

Nothing is created at import, and nothing at all if no health port is set and no alerts are sent. Labels have few
values, all known in advance: never a run, a workflow or a text.
"""

from __future__ import annotations

from typing import Any, Literal, get_args
from uuid import UUID

from orcheo_dispatch import __version__
from orcheo_dispatch.shared.cron.report import ApiCronOutcome, WorkerCronOutcome
from orcheo_dispatch.shared.ledger.model import Outcome, ProcessKind
from orcheo_dispatch.shared.metrics.cron import CronCounters
from orcheo_dispatch.shared.metrics.instruments import OTHER, Instruments
from orcheo_dispatch.shared.metrics.steps import StepCounters
from orcheo_dispatch.shared.settings.dispatch import ALL_TRIGGERS, DEFAULT_TRIGGERS
from orcheo_dispatch.shared.settings.model import Settings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

PollResult = Literal["succeeded", "blocked", "broker_away", "database_away", "failed"]
AlertResult = Literal["delivered", "failed"]
MessageResult = Literal["begun", "rejected", "skipped", "stale", "unknown", "malformed", "refused", "database_away"]
HintKind = Literal["run", "cron", "notify"]
ReleaseReason = Literal["broker_away", "message_lost"]

_RUN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_POLL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_OUTCOMES = tuple(outcome.value for outcome in Outcome if outcome is not Outcome.RELEASED)


class Metrics:
    """The metrics of every kind of process."""

    kind: ProcessKind

    def __init__(self, settings: Settings, process_id: UUID) -> None:
        self._settings = settings
        # Alerts read them too.
        on = settings.health_port != 0 or settings.alerts_urls is not None
        self._instruments = make = Instruments(on=on)
        make.info(
            "orcheo_dispatch_process",
            "Version and identity of this process.",
            kind=self.kind.value,
            version=__version__,
            id=str(process_id),
        )
        self._broker_errors = make.counter("orcheo_dispatch_broker_errors", "Errors of Redis.")
        self._database_errors = make.counter("orcheo_dispatch_database_errors", "Errors of Postgres.")
        self._define(make)

    def broker_failed(self) -> None:
        """Count an error of Redis."""
        self._broker_errors().inc()

    def database_failed(self) -> None:
        """Count an error of Postgres."""
        self._database_errors().inc()

    def add(self, collector: Any) -> None:
        """Also expose what the prometheus_client collector `collector` yields at each scrape."""
        self._instruments.add(collector)

    def read(self) -> tuple[bytes, str]:
        """Return the body of /metrics and its content type."""
        return self._instruments.read(), CONTENT_TYPE

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Return every series that a scrape would get, by name and labels; empty if metrics are off."""
        return self._instruments.samples()

    def close(self) -> None:
        """Discard all values from now on."""
        self._instruments.close()

    def _define(self, make: Instruments) -> None:
        raise NotImplementedError


class BeatMetrics(Metrics):
    """The metrics of Beat."""

    kind = ProcessKind.BEAT

    def _define(self, make: Instruments) -> None:
        self._ticks = make.counter("orcheo_dispatch_ticks_sent", "Ticks that Beat has sent.")

    def tick_sent(self) -> None:
        """Count a tick that was sent."""
        self._ticks().inc()


class ConsumerMetrics(Metrics):
    """The metrics of dispatchers and workers, which consume messages."""

    def _define(self, make: Instruments) -> None:
        self._stalls = make.counter("orcheo_dispatch_consumer_stalls", "Times that the consumer stopped consuming.")
        self._spans = make.counter(
            "orcheo_dispatch_spans",
            "Spans by result; failed: the collector did not take them, dropped: the queue was full.",
            result=("exported", "failed", "dropped"),
        )
        self._alerts = make.counter(
            "orcheo_dispatch_alerts_sent",
            "Attempts to deliver an alert to one target, by result.",
            result=get_args(AlertResult),
        )

    def consumer_stalled(self) -> None:
        """Count a consumer that had stopped consuming."""
        self._stalls().inc()

    def spans_exported(self, spans: int) -> None:
        """Count spans that the collector took."""
        self._spans("exported").inc(spans)

    def spans_lost(self, spans: int, result: str) -> None:
        """Count spans that were not exported: `failed` or `dropped`."""
        self._spans(result).inc(spans)

    def alert_sent(self, result: AlertResult) -> None:
        """Count an attempt to deliver an alert to one target."""
        self._alerts(result).inc()


class DispatcherMetrics(ConsumerMetrics):
    """The metrics of a dispatcher."""

    kind = ProcessKind.DISPATCHER

    def _define(self, make: Instruments) -> None:
        super()._define(make)
        self._polls = make.counter("orcheo_dispatch_polls", "Polls, by result.", result=get_args(PollResult))
        self._poll_seconds = make.histogram("orcheo_dispatch_poll_seconds", "Duration of a poll.", _POLL_SECONDS)
        self._claimed = make.counter("orcheo_dispatch_runs_claimed", "Pending runs that were claimed.")
        self._published = make.counter("orcheo_dispatch_runs_published", "Claims whose messages were published.")
        self._released = make.counter(
            "orcheo_dispatch_claims_released",
            "Claims released before their runs began, by reason.",
            reason=get_args(ReleaseReason),
        )
        self._extended = make.counter(
            "orcheo_dispatch_claims_extended", "Claims extended because Redis still holds their messages."
        )
        self._reaped = make.counter(
            "orcheo_dispatch_runs_reaped",
            "Runs whose worker was lost, by outcome.",
            outcome=(Outcome.LOST.value, Outcome.REQUEUED.value),
        )
        self._retried = make.counter(
            "orcheo_dispatch_runs_retried", "Failed runs that were tried again, by the retry policy of their workflow."
        )
        self._room = make.gauge("orcheo_dispatch_room_runs", "Runs that the last poll could have claimed.")
        self._maintenance = make.gauge(
            "orcheo_dispatch_maintenance", "1 while an operator has everything paused for maintenance, else 0."
        )
        self._hints = make.counter(
            "orcheo_dispatch_hints",
            "Wake-ups between ticks: pushes of the API, and NOTIFY, by kind.",
            kind=get_args(HintKind),
        )
        self._ticks = make.counter("orcheo_dispatch_ticks_received", "Ticks of Beat that were received.")
        self.steps = StepCounters(make)
        self._listening = make.gauge("orcheo_dispatch_listen_up", "1 while notifications are received, 0 otherwise.")
        self._beat_silent = make.gauge("orcheo_dispatch_beat_silent", "1 while Beat is silent, 0 while it ticks.")
        self.cron = CronCounters(make, get_args(ApiCronOutcome))

    def polled(self, result: PollResult, seconds: float) -> None:
        """Count a poll and its duration."""
        self._polls(result).inc()
        self._poll_seconds().observe(seconds)

    def claimed(self, runs: int) -> None:
        """Count runs that were claimed."""
        self._claimed().inc(runs)

    def published(self, runs: int) -> None:
        """Count claims whose messages were published."""
        self._published().inc(runs)

    def released(self, claims: int, reason: ReleaseReason) -> None:
        """Count claims that were released."""
        self._released(reason).inc(claims)

    def extended(self, claims: int) -> None:
        """Count claims whose leases were extended."""
        self._extended().inc(claims)

    def reaped(self, *, lost: int, requeued: int) -> None:
        """Count runs whose worker was lost."""
        self._reaped(Outcome.LOST.value).inc(lost)
        self._reaped(Outcome.REQUEUED.value).inc(requeued)

    def retried(self, runs: int) -> None:
        """Count failed runs that are tried again."""
        self._retried().inc(runs)

    def room(self, runs: int) -> None:
        """Note how many runs this poll may claim."""
        self._room().set(runs)

    def maintenance(self, on: bool) -> None:
        """Record whether nothing is claimed because an operator said so."""
        self._maintenance().set(on)

    def hinted(self, kind: HintKind, hints: int = 1) -> None:
        """Count hints: pushes of the API, or notifications of Postgres."""
        self._hints(kind).inc(hints)

    def listens(self, listening: bool) -> None:
        """Record whether notifications of Postgres are received."""
        self._listening().set(listening)

    def ticked(self) -> None:
        """Count a tick of Beat."""
        self._ticks().inc()

    def beat_is_silent(self, silent: bool) -> None:
        """Note whether Beat is silent."""
        self._beat_silent().set(silent)


class WorkerMetrics(ConsumerMetrics):
    """The metrics of a worker's main process, which also counts the outcomes of runs in its runners."""

    kind = ProcessKind.WORKER

    def _define(self, make: Instruments) -> None:
        super()._define(make)
        self._messages = make.counter(
            "orcheo_dispatch_messages",
            "Claims received in messages, by result.",
            result=get_args(MessageResult),
        )
        self._pending_seconds = make.histogram(
            "orcheo_dispatch_run_pending_seconds",
            "Time from creation of a run to the claim under which it first began.",
            _RUN_SECONDS,
        )
        self._queued_seconds = make.histogram(
            "orcheo_dispatch_run_queued_seconds", "Time from a run's claim to its begin.", _RUN_SECONDS
        )
        self._running_seconds = make.histogram(
            "orcheo_dispatch_run_running_seconds", "Time from a run's begin to its settling.", _RUN_SECONDS
        )
        self._settled = make.counter(
            "orcheo_dispatch_runs_settled",
            "Runs that this worker settled, by outcome and trigger.",
            outcome=_OUTCOMES,
            trigger=_trigger_labels(self._settings),
        )
        self._stale = make.counter(
            "orcheo_dispatch_stale_settles", "Runs that belonged to another worker when they were to be settled."
        )
        self._resumed = make.counter(
            "orcheo_dispatch_runs_resumed", "Times that this worker continued a run after its last stored step."
        )
        self._repeated = make.counter(
            "orcheo_dispatch_tasks_repeated",
            "Tasks that may have begun before a run was lost, and that this worker executed when it resumed the run.",
        )
        self._refused = make.counter(
            "orcheo_dispatch_checkpoints_refused",
            "Checkpoints that could not be stored: the steps since the last one are executed again if the run is lost.",
        )
        self._in_flight = make.gauge("orcheo_dispatch_runs_in_flight", "Runs being executed.")
        self._capacity = make.gauge("orcheo_dispatch_capacity_runs", "Maximum number of runs executed at a time.")
        self._heartbeats = make.counter(
            "orcheo_dispatch_heartbeats", "Heartbeats, by result.", result=("succeeded", "failed")
        )
        self._lag = make.gauge(
            "orcheo_dispatch_loop_lag_seconds",
            "Longest time that the event loop of any runner has not responded.",
        )
        self._blocked = make.counter(
            "orcheo_dispatch_loop_blocks", "Times that a run blocked the event loop of its runner."
        )
        self._runners_lost = make.counter(
            "orcheo_dispatch_runners_lost",
            "Runners that ended while executing runs: exited, ended by a signal, or killed by the worker.",
            how=("exited", "signal", "killed"),
        )
        self.cron = CronCounters(make, get_args(WorkerCronOutcome))

    def message_taken(self, result: MessageResult) -> None:
        """Count a claim of a message by its outcome, or a malformed message."""
        self._messages(result).inc()

    def run_begun(self) -> None:
        """Count a run as in flight."""
        self._in_flight().inc()

    def run_ended(self) -> None:
        """Stop counting a run as in flight: it is settled, or belongs to another worker by now."""
        self._in_flight().dec()

    def was_pending(self, seconds: float) -> None:
        """Record how long a run that begins for the first time was pending before its claim."""
        self._pending_seconds().observe(max(0.0, seconds))

    def was_queued(self, seconds: float) -> None:
        """Record the time between the claim and the begin of a run."""
        self._queued_seconds().observe(max(0.0, seconds))

    def run_settled(self, outcome: Outcome, trigger: str, seconds: float) -> None:
        """Count a run that ended here, and its duration."""
        self._settled(outcome.value, trigger).inc()
        self._running_seconds().observe(seconds)

    def run_resumed(self, tasks: int) -> None:
        """Count a run that continues with this many tasks."""
        self._resumed().inc()
        self._repeated().inc(tasks)

    def checkpoint_refused(self) -> None:
        """Count a checkpoint that could not be stored."""
        self._refused().inc()

    def settle_was_stale(self) -> None:
        """Count a run that could not be settled, because it belongs to another worker by now."""
        self._stale().inc()

    def capacity(self, runs: int) -> None:
        """Record how many runs this worker executes at a time."""
        self._capacity().set(runs)

    def beaten(self, *, succeeded: bool) -> None:
        """Count a heartbeat."""
        self._heartbeats("succeeded" if succeeded else "failed").inc()

    def loop_lag(self, seconds: float) -> None:
        """Record the longest time that the event loop of any runner has not responded."""
        self._lag().set(seconds)

    def loop_blocked(self) -> None:
        """Count a run that blocked the event loop of its runner."""
        self._blocked().inc()

    def runner_lost(self, how: str) -> None:
        """Count a runner that ended while it executed runs: `exited`, by a `signal`, or `killed` by this process."""
        self._runners_lost(how).inc()


def _trigger_labels(settings: Settings) -> tuple[str, ...]:
    named = [trigger for trigger in settings.triggers if trigger != ALL_TRIGGERS]
    known = DEFAULT_TRIGGERS if settings.takes_every_trigger else ()
    return tuple(dict.fromkeys([*named, *known, OTHER]))
