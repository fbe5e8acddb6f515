"""Look at the conditions of the alerts, and send what is due, on threads and a connection of their own.

Each process looks at what it knows. One of them, the teller, also looks at the whole system, decides what is due and
sends it; see `book`. While Postgres is unavailable nothing can be decided together: each dispatcher then tells of the
outage by itself, and remembers that it did; see `outage`.
"""

from __future__ import annotations

import time

from orcheo_dispatch.shared.alerts import rules
from orcheo_dispatch.shared.alerts.book import Book, Due
from orcheo_dispatch.shared.alerts.messages import Key, Message, Origin
from orcheo_dispatch.shared.alerts.outage import Outage
from orcheo_dispatch.shared.alerts.outbox import Outbox
from orcheo_dispatch.shared.alerts.readings import Facts, Readings
from orcheo_dispatch.shared.alerts.rules import CAUSED_BY, Rule, Seer
from orcheo_dispatch.shared.alerts.targets import Target, targets_of
from orcheo_dispatch.shared.broker.installation import Installation
from orcheo_dispatch.shared.database.connections import make_engine
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger.model import ProcessKind
from orcheo_dispatch.shared.ledger.processes import Process
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.metrics.model import ConsumerMetrics
from orcheo_dispatch.shared.process.lasting import Inbox, LastingThread
from orcheo_dispatch.shared.settings.model import Settings

_INTERVAL_SECONDS = 10.0
_INTERVALS = 10
"""Poll intervals between two looks, if that is shorter."""
_AFTER_OUTAGE_SECONDS = 360.0
"""How long what an outage caused is not told after its end; longer than the window of `OrcheoBrokerErrors`."""
_PRUNE_SECONDS = 3600.0
_STOP_SECONDS = 3.0


class Teller:
    """Tells from `start` to `stop`. It owns its engine."""

    def __init__(
        self,
        settings: Settings,
        targets: list[Target],
        *,
        process: Process,
        installation: Installation,
        metrics: ConsumerMetrics,
    ) -> None:
        self._kind = process.kind
        self._host = process.host
        self._interval = min(_INTERVAL_SECONDS, _INTERVALS * settings.poll_interval)
        self._repeat, self._calm = settings.alerts_repeat, settings.alerts_hold
        self._origin = Origin(installation.name, settings.alerts_link)
        self._engine = make_engine(settings, role=f"{process.kind.value} alerts", connections=1)
        self._book = Book(self._engine, process_id=process.id, kind=process.kind)
        self._readings = Readings(metrics.samples)
        self._inbox: Inbox[tuple[Key, bool]] = Inbox()
        self._outbox = Outbox(targets, metrics, lambda key, delivered: self._inbox.put((key, delivered)))
        self._outage = Outage(rules.BY_NAME[rules.DATABASE], repeat=self._repeat, calm=self._calm)
        self._results: list[tuple[Key, bool]] = []
        self._sending: set[Key] = set()
        self._true_at: dict[str, float] = {}
        self._leads_since: float | None = None
        self._postponed = False
        self._due_at = time.monotonic()
        self._prune_at = time.monotonic()
        self._thread = LastingThread("alerts", self._turn, inbox=self._inbox)

    def start(self) -> None:
        """Start looking."""
        self._outbox.start()
        self._thread.start()

    def stop(self) -> None:
        """Finish what is being sent, within seconds, and let another process tell."""
        self._thread.stop(timeout=_STOP_SECONDS)
        self._outbox.stop(_STOP_SECONDS)
        try:
            self._take(0)
            self._record()
            if self._leads_since is not None:
                self._book.leave()
        except DatabaseError as error:
            log.debug("alerts_not_recorded", reason=error.what)
        self._engine.dispose()

    def _turn(self) -> None:
        self._take(max(0.0, min(self._interval, self._due_at - time.monotonic())))
        due = time.monotonic() >= self._due_at
        if due:
            self._due_at = time.monotonic() + self._interval
            self._readings.take()
            self._watch_database()
        try:
            self._record()
            if due:
                self._look()
        except DatabaseError as error:
            self._leads_since = None
            if not self._postponed:
                log.warning("alerts_postponed", reason=str(error))
            self._postponed = True
        else:
            if due and self._postponed:
                self._postponed = False
                log.info("alerts_resumed")

    def _take(self, seconds: float) -> None:
        """Take what was delivered, and wait up to `seconds` for it."""
        for key, delivered in self._inbox.take(seconds, most=1000):
            if key.name == rules.DATABASE:
                self._sending.discard(key)
                self._outage.record(key, delivered=delivered)
            else:
                self._results.append((key, delivered))

    def _record(self) -> None:
        """Record what was delivered; what cannot be recorded now is recorded later."""
        while self._results:
            key, delivered = self._results[0]
            self._book.record(key, delivered=delivered)
            self._results.pop(0)
            self._sending.discard(key)

    def _watch_database(self) -> None:
        if self._kind is not ProcessKind.DISPATCHER:
            return
        found = self._outage.rule.condition(self._readings)
        if found:
            self._true_at[rules.DATABASE] = time.monotonic()
        if (message := self._outage.turn(self._origin, found)) is not None:
            self._put(message)

    def _look(self) -> None:
        tells = self._book.lead()
        if tells and self._leads_since is None:
            if not self._postponed:
                log.info("alerts_leading")
            self._leads_since = time.monotonic()
        elif not tells:
            self._leads_since = None
        self._readings.facts = self._book.facts() if tells else Facts()
        found: dict[tuple[str, str], float] = {}
        unknown = []
        for rule in rules.seen_by(self._kind, tells=tells):
            subjects = rule.condition(self._readings)
            if subjects is None:
                unknown.append(rule.name)
                continue
            if subjects:
                self._true_at[rule.name] = time.monotonic()
            if not self._is_caused(rule):
                found |= {(rule.name, self._subject(rule, each)): value for each, value in subjects.items()}
        self._book.seen(found)
        if self._leads_since is not None:
            self._book.keep(unknown)
            self._tell(self._leads_since)

    def _tell(self, leads_since: float) -> None:
        now = time.monotonic()
        told = [rule for rule in rules.told_by(self._kind) if not self._is_caused(rule)]
        # Whoever looks at a condition needs time to confirm it after an outage, or after the teller was replaced.
        may_resolve = now - leads_since >= min(self._calm, 60.0) + 2 * self._interval
        for due in self._book.claim(told, repeat=self._repeat, calm=self._calm, may_resolve=may_resolve):
            self._put(self._message(due))
        if self._kind is ProcessKind.DISPATCHER and now >= self._prune_at:
            self._prune_at = now + _PRUNE_SECONDS
            self._book.prune()

    def _put(self, message: Message) -> None:
        # Claimed again, because the claim expired while a target did not answer.
        if message.key not in self._sending:
            self._sending.add(message.key)
            self._outbox.put(message)

    def _message(self, due: Due) -> Message:
        rule = rules.BY_NAME[due.name]
        if due.resolved:
            return self._origin.recovery(rule, due.subject, due.value, due.seconds)
        return self._origin.alert(rule, due.subject, due.value, due.seconds, again=due.again)

    def _is_caused(self, rule: Rule) -> bool:
        """Return whether an outage that is told by itself causes this alert, now or a few minutes ago."""
        cause = CAUSED_BY.get(rule.name)
        at = self._true_at.get(cause) if cause else None
        return at is not None and time.monotonic() - at < _AFTER_OUTAGE_SECONDS

    def _subject(self, rule: Rule, subject: str) -> str:
        """Return the subject; of what a process sees of itself alone, its kind and host."""
        by_itself = rule.seer in (Seer.EACH, Seer.WORKERS) or "{subject}" in rule.text
        return f"{self._kind.value} on {self._host}" if by_itself and not subject else subject


def teller_of(
    settings: Settings, *, process: Process, installation: Installation, metrics: ConsumerMetrics
) -> Teller | None:
    """Return what sends alerts in this process; None, and nothing is imported, if ORCHEO_ALERTS_URLS is unset.

    Raises `SettingsError` as `targets_of` does.
    """
    targets = targets_of(settings)
    if not targets:
        return None
    return Teller(settings, targets, process=process, installation=installation, metrics=metrics)
