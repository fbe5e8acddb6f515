"""Gauges of pending runs, processes and servers, read when Prometheus scrapes, never by a poll."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import redis
from sqlalchemy import Engine, text

from orcheo_dispatch.shared.broker.app import broker_errors
from orcheo_dispatch.shared.broker.installation import Installation
from orcheo_dispatch.shared.cron.record import CronRecord
from orcheo_dispatch.shared.database.connections import make_engine, transaction
from orcheo_dispatch.shared.errors import BrokerError, DatabaseError, DispatchError, SchemaError
from orcheo_dispatch.shared.ledger.model import ProcessKind
from orcheo_dispatch.shared.ledger.status import DISPATCH, SLOTS_DUE, count_isolated, count_wanted_workers, read_others
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.settings.policies import CronMode

COUNTED = 25_000
"""Maximum number of pending runs that the view `pending_kpi` counts, so that the cost of a scrape is bounded."""
FRESH_SECONDS = 5.0
"""Maximum age of a reading that is served (seconds), whatever the number of scrapers."""
_WAIT_SECONDS = 1.0
_STALE_SECONDS = 15.0
"""A reading older than this (seconds) is not shown: a constant number would look healthy."""
_STATEMENT_TIMEOUT_MILLISECONDS = 3000

PENDING = text("SELECT pending, late, oldest_seconds AS oldest FROM orcheo_dispatch.pending_kpi")

PROCESSES = text("""
SELECT kind, count(*) FILTER (WHERE alive) AS alive, count(*) FILTER (WHERE vanished) AS vanished
  FROM orcheo_dispatch.processes GROUP BY kind
""")

# Measured in transactions, which any role may see; the start time of another role's transaction needs a privilege.
OLDEST_TRANSACTION = text("""
SELECT COALESCE(max(GREATEST(age(backend_xmin), age(backend_xid))), 0) FROM pg_stat_activity
 WHERE datname = current_database() AND usename IS NOT NULL AND pid <> pg_backend_pid()
""")


@dataclass(frozen=True, slots=True)
class _Reading:
    """The result of one reading; values from a server that did not answer are None."""

    at: float
    ledger: dict[str, float] | None = None
    alive: dict[str, int] | None = None
    vanished: dict[str, int] | None = None
    messages: int | None = None
    cron_age: float | None = None


class Backlog:
    """A collector for prometheus_client.

    One reading serves all scrapes within five seconds. It is made on its own thread and connection, so that neither a
    poll nor a scrape waits for a database that does not answer.
    """

    def __init__(self, settings: Settings, installation: Installation, broker: redis.Redis) -> None:
        self._settings = settings
        self._installation = installation
        self._broker = broker
        self._cron = CronRecord(broker, installation.cron_record)
        self._began = time.monotonic()
        self._engine: Engine | None = None
        self._lock = threading.Lock()
        self._reading = _Reading(float("-inf"))
        self._done: threading.Event | None = None
        self._closed = False

    def collect(self) -> Iterator[Any]:
        """Yield the gauges. If a server is unavailable, its `_up` is 0 and the gauges read from it are left out."""
        from prometheus_client.core import GaugeMetricFamily

        def gauge(name: str, what: str, value: float | None) -> Any:
            return GaugeMetricFamily(f"orcheo_dispatch_{name}", what, value=value)

        def gauge_by_kind(name: str, what: str, values: dict[str, int] | None) -> Any:
            family = GaugeMetricFamily(f"orcheo_dispatch_{name}", what, labels=("kind",))
            for kind in ProcessKind if values is not None else ():
                family.add_metric([kind.value], (values or {}).get(kind.value, 0))
            return family

        found = self._recent()
        of = found.ledger or {}
        yield gauge("database_up", "1 if Postgres answered the last reading, 0 otherwise.", found.ledger is not None)
        yield gauge("broker_up", "1 if Redis answered the last reading, 0 otherwise.", found.messages is not None)
        yield gauge("pending_runs", f"Pending runs that dispatchers claim, up to {COUNTED}.", of.get("pending"))
        yield gauge("pending_late_runs", "Pending runs older than five minutes.", of.get("late"))
        yield gauge(
            "pending_oldest_age_seconds", "Age of the oldest pending run; 0 if there is none.", of.get("oldest")
        )
        yield gauge("claimed_runs", "Runs claimed and not marked as published yet.", of.get("claimed"))
        yield gauge("published_runs", "Runs published and not begun yet.", of.get("published"))
        yield gauge("stuck_runs", "Runs that are running although their lease has expired.", of.get("stuck"))
        yield gauge("unclaimed_runs", "Pending runs that no dispatcher will claim.", of.get("unclaimed"))
        yield gauge(
            "begun_elsewhere_runs",
            "Runs begun in the last ten minutes by the API itself or by Orcheo's own worker.",
            of.get("begun_elsewhere"),
        )
        yield gauge(
            "isolated_workflows",
            "Workflows, or versions of them, whose runs are executed in dedicated processes.",
            of.get("isolated"),
        )
        yield gauge(
            "wanted_workers",
            "Workers that the load needs to begin all that is due within ORCHEO_DISPATCH_TARGET_DELAY.",
            of.get("wanted"),
        )
        yield gauge("due_slots", "Run slots that are due to be returned.", of.get("slots_due"))
        yield gauge(
            "oldest_transaction_age_transactions",
            "Transactions begun since the oldest one that is still open in this database.",
            of.get("oldest_transaction"),
        )
        yield gauge("queue_messages", "Messages waiting in the queue of runs in Redis.", found.messages)
        yield gauge("queue_limit_messages", "ORCHEO_DISPATCH_MAX_QUEUED.", self._settings.max_queued)
        if self._settings.cron_mode is not CronMode.OFF:
            yield gauge(
                "cron_age_seconds",
                "Time since any process last dispatched cron triggers; since the start of this process if none has.",
                found.cron_age,
            )
            yield gauge("cron_interval_seconds", "ORCHEO_CRON_INTERVAL.", self._settings.cron_interval)
        yield gauge_by_kind("alive_processes", "Processes seen in the last 30 seconds, by kind.", found.alive)
        yield gauge_by_kind(
            "vanished_processes",
            "Processes that disappeared without deregistering in the last 24 hours, by kind, except Beats.",
            found.vanished,
        )

    def close(self) -> None:
        """Stop reading and close the connection; if a reading is in progress, when it ends."""
        with self._lock:
            self._closed = True
            if self._done is None:
                self._dispose()

    def _recent(self) -> _Reading:
        """Return a fresh reading; the last one if a new one takes too long; an empty one if the last one is stale."""
        with self._lock:
            done = self._done
            if done is None and not self._closed and time.monotonic() - self._reading.at > FRESH_SECONDS:
                done = self._done = threading.Event()
                threading.Thread(target=self._read, args=(done,), name="backlog", daemon=True).start()
        if done is not None:
            done.wait(_WAIT_SECONDS)
        reading = self._reading
        return reading if time.monotonic() - reading.at <= _STALE_SECONDS else _Reading(reading.at)

    def _read(self, done: threading.Event) -> None:
        reading = _Reading(float("-inf"))
        try:
            reading = self._look()
        finally:
            with self._lock:
                self._reading, self._done = reading, None
                if self._closed:
                    self._dispose()
            done.set()

    def _dispose(self) -> None:
        if self._engine is not None:
            self._engine.dispose()

    def _look(self) -> _Reading:
        # Only whether they answer matters here; polls and heartbeats log the reason.
        messages, ledger, alive, vanished, cron_age = None, None, None, None, None
        with suppress(BrokerError), broker_errors():
            answer: Any = self._broker.llen(self._installation.runs)
            messages = int(answer)
            seen = self._cron.success()
            cron_age = seen.age if seen is not None else time.monotonic() - self._began
        try:
            ledger, alive, vanished = self._ask_database()
        except SchemaError:
            # The server answers, but a view is missing or may not be read: `check` reports which one.
            ledger = {}
        except DispatchError:
            pass
        return _Reading(time.monotonic(), ledger, alive, vanished, messages, cron_age)

    def _ask_database(self) -> tuple[dict[str, float], dict[str, int], dict[str, int]]:
        with self._lock:
            if self._closed:
                raise DatabaseError("closed")
            if self._engine is None:
                self._engine = make_engine(self._settings, role="metrics", connections=1)
        with transaction(
            self._engine, timeout_milliseconds=_STATEMENT_TIMEOUT_MILLISECONDS, read_only=True
        ) as connection:
            pending = connection.execute(PENDING).one()
            claims = connection.execute(DISPATCH).one()
            slots_due = connection.scalar(SLOTS_DUE) or 0
            processes = connection.execute(PROCESSES).all()
            oldest = connection.scalar(OLDEST_TRANSACTION)
            others = read_others(connection)
            isolated = count_isolated(connection)
            wanted = count_wanted_workers(connection, self._settings.target_delay)
        return (
            {
                "pending": pending.pending,
                "late": pending.late,
                "oldest": pending.oldest,
                "claimed": claims.claimed,
                "published": claims.published,
                "stuck": claims.stuck,
                "slots_due": slots_due,
                **(asdict(others) if others else {}),
                **({} if isolated is None else {"isolated": isolated}),
                **({} if wanted is None else {"wanted": wanted}),
                "oldest_transaction": oldest or 0,
            },
            {row.kind: row.alive for row in processes},
            {row.kind: row.vanished for row in processes},
        )
