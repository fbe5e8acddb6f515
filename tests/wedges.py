"""A worker whose consumer breaks on a signal, as Celery's is known to by itself: run as a program by the tests."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

from celery.signals import worker_ready

from ops.running import worker
from shared.consumer import Consumer

DEAFEN, WEDGE = signal.SIGUSR2, signal.SIGWINCH
_consumers: list[Consumer] = []


def _deafen(number: int, frame: FrameType | None) -> None:
    """Stay connected and consume nothing (celery#8030, #8091, #9191)."""
    (consumer,) = _consumers
    consumer.call_soon(consumer.task_consumer.cancel)


def _wedge(number: int, frame: FrameType | None) -> None:
    """Hang in the event loop of Celery, as in a socket without a timeout."""
    (consumer,) = _consumers
    consumer.call_soon(time.sleep, 3600)


def _ready(sender: Consumer, **_: Any) -> None:
    _consumers.append(sender)
    signal.signal(DEAFEN, _deafen)
    signal.signal(WEDGE, _wedge)


if __name__ == "__main__":
    worker_ready.connect(_ready, weak=False)
    worker(instance=0)
