"""Deliver messages: one thread per target, so that a target that does not answer delays nothing and nobody else."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orcheo_dispatch.shared.alerts.messages import Key, Message
from orcheo_dispatch.shared.alerts.targets import Target
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.metrics.model import ConsumerMetrics

_WAITING = 50
"""Maximum number of messages that wait for one target; a further one is dropped for it."""
_PAUSES_SECONDS = (0.0, 5.0, 30.0)
"""Pauses before the attempts to deliver a message to a target. After a failure the next message gets one attempt."""


@dataclass(slots=True)
class _Sending:
    """A message on its way to all targets."""

    message: Message
    left: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    delivered: bool = False

    def done(self, *, delivered: bool) -> bool | None:
        """Note the result of one target; return the result for all once it is known, and None before and after."""
        with self.lock:
            self.left -= 1
            if self.delivered:
                return None
            self.delivered = delivered
            return True if delivered else False if self.left == 0 else None


class Outbox:
    """Sends each message to all targets. `on_result` is called once per message, on the thread of a target.

    A message counts as delivered once one target has accepted it.
    """

    def __init__(
        self, targets: Sequence[Target], metrics: ConsumerMetrics, on_result: Callable[[Key, bool], None]
    ) -> None:
        self._metrics = metrics
        self._on_result = on_result
        self._stopping = threading.Event()
        self._lanes = [_Lane(target, metrics, self._done, self._stopping) for target in targets]

    def start(self) -> None:
        """Start the threads."""
        for lane in self._lanes:
            lane.start()

    def put(self, message: Message) -> None:
        """Send a message to all targets. Never waits."""
        sending = _Sending(message, len(self._lanes))
        for lane in self._lanes:
            lane.put(sending)

    def stop(self, timeout: float) -> None:
        """Finish the attempts in progress, up to `timeout` seconds in all; no other begins."""
        self._stopping.set()
        for lane in self._lanes:
            lane.stop(timeout / len(self._lanes))

    def _done(self, sending: _Sending, delivered: bool) -> None:
        result = sending.done(delivered=delivered)
        if result is not None:
            self._on_result(sending.message.key, result)


class _Lane:
    """The thread of one target."""

    def __init__(
        self,
        target: Target,
        metrics: ConsumerMetrics,
        done: Callable[[_Sending, bool], None],
        stopping: threading.Event,
    ) -> None:
        self._target = target
        self._metrics = metrics
        self._done = done
        self._stopping = stopping
        self._queue: queue.Queue[_Sending | None] = queue.Queue(_WAITING)
        self._accepts = True
        # A daemon: an attempt that never ends must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="alert target", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, sending: _Sending) -> None:
        try:
            self._queue.put_nowait(sending)
        except queue.Full:
            self._failed(sending, "too many messages wait for this target", attempt=0)
            self._done(sending, False)

    def stop(self, timeout: float) -> None:
        # If it is full, the thread sees after its attempt that it is to stop.
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (sending := self._queue.get()) is not None and not self._stopping.is_set():
            self._accepts = self._deliver(sending)
            self._done(sending, self._accepts)

    def _deliver(self, sending: _Sending) -> bool:
        pauses = _PAUSES_SECONDS if self._accepts else _PAUSES_SECONDS[:1]
        for attempt, pause in enumerate(pauses, 1):
            if pause and self._stopping.wait(pause):
                return False
            reason = self._target.send(sending.message)
            key = sending.message.key
            if reason is None:
                self._metrics.alert_sent("delivered")
                log.info("alert_sent", alert=key.name, target=self._target.name, resolved=key.resolved)
                return True
            self._failed(sending, reason, attempt)
        return False

    def _failed(self, sending: _Sending, reason: str, attempt: int) -> None:
        self._metrics.alert_sent("failed")
        log.warning(
            "alert_not_sent", alert=sending.message.key.name, target=self._target.name, reason=reason, attempt=attempt
        )
