"""The record, shared by all processes, of when cron triggers were last dispatched."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import redis

from orcheo_dispatch.shared.broker.app import broker_errors
from orcheo_dispatch.shared.cron.report import CronReport
from orcheo_dispatch.shared.errors import BrokerError
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.text.plain import plain
from orcheo_dispatch.shared.text.redaction import redact

_RECORD_SECONDS = 86_400
_HOST_CHARACTERS = 255
_OUTCOME_CHARACTERS = 50
_REASON_CHARACTERS = 500
_LONGEST_ENTRY = 4096
_TURN = 0.9
"""Fraction of an interval during which no other process dispatches on its own after one has started to."""


@dataclass(frozen=True, slots=True)
class CronSeen:
    """One entry of the record."""

    age: float
    """Age of the entry in seconds, as Redis counts them."""
    host: str
    by_itself: bool
    """Whether the process dispatched on its own, without a message from Beat."""
    outcome: str
    reason: str


class CronRecord:
    """Records when cron triggers were last dispatched, and when that last failed.

    Uses two keys in Redis that expire after a day. Ages are counted by Redis from a key's remaining time to live, so
    no host's clock matters.
    """

    def __init__(self, client: redis.Redis, name: str) -> None:
        """`name` is the prefix of both keys."""
        self._client = client
        self._name = name
        self._host = socket.gethostname()

    def note(self, report: CronReport, *, by_itself: bool) -> None:
        """Record a dispatch. Never raises: without the record, other processes merely dispatch as well."""
        if report.outcome == "busy":
            return
        entry = CronSeen(0, self._host, by_itself, report.outcome, report.reason)
        key = f"{self._name}.{'success' if report.outcome == 'succeeded' else 'failure'}"
        try:
            with broker_errors():
                self._client.set(key, json.dumps(asdict(entry)), ex=_RECORD_SECONDS)
        except BrokerError as error:
            log.debug("cron_not_recorded", reason=str(error))

    def take_turn(self, interval: float) -> bool:
        """Reserve the next unprompted dispatch for this process; return False if another has. Raises `BrokerError`."""
        with broker_errors():
            milliseconds = max(1, int(interval * _TURN * 1000))
            return bool(self._client.set(f"{self._name}.turn", self._host, nx=True, px=milliseconds))

    def leave_turn(self) -> None:
        """Give up the reservation, because this process did not dispatch. Never raises, because it expires anyway."""
        with suppress(BrokerError), broker_errors():
            self._client.delete(f"{self._name}.turn")

    def success(self) -> CronSeen | None:
        """Return the last successful dispatch by any process, up to a day old. Raises `BrokerError`."""
        return self._read("success")

    def failure(self) -> CronSeen | None:
        """Return the last failed dispatch, up to a day old. Raises `BrokerError`."""
        return self._read("failure")

    def _read(self, which: str) -> CronSeen | None:
        key = f"{self._name}.{which}"
        with broker_errors(), self._client.pipeline(transaction=True) as pipeline:
            # Another program may have written a value of any size there.
            pipeline.getrange(key, 0, _LONGEST_ENTRY - 1)
            pipeline.pttl(key)
            raw, left = pipeline.execute()
        try:
            entry: dict[str, Any] = json.loads(raw)
            return CronSeen(
                age=max(0.0, _RECORD_SECONDS - int(left) / 1000),
                # Anyone who can write to Redis can forge an entry, and operators see its texts.
                host=plain(str(entry["host"]), _HOST_CHARACTERS),
                by_itself=bool(entry["by_itself"]),
                outcome=plain(str(entry["outcome"]), _OUTCOME_CHARACTERS),
                reason=plain(redact(str(entry["reason"]), _REASON_CHARACTERS)),
            )
        except (ValueError, TypeError, KeyError, RecursionError):
            # Missing, or written by another program.
            return None
