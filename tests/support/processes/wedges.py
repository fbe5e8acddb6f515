"""A worker whose consumer breaks on a signal, as Celery's is known to by itself, and that lists its modules on another.

Run as a program by the tests.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from celery.signals import worker_ready

from orcheo_dispatch.ops.commands.run import worker

if TYPE_CHECKING:
    from orcheo_dispatch.shared.consumer.consumer import Consumer

DEAFEN, WEDGE, LIST_MODULES = signal.SIGUSR2, signal.SIGWINCH, signal.SIGURG
MODULES = "TEST_MODULES"
"""Variable that names the file to which `LIST_MODULES` writes what the process has imported."""
_consumers: list[Consumer] = []


def _deafen(number: int, frame: FrameType | None) -> None:
    """Stay connected and consume nothing (celery#8030, #8091, #9191)."""
    (consumer,) = _consumers
    consumer.call_soon(consumer.task_consumer.cancel)


def _wedge(number: int, frame: FrameType | None) -> None:
    """Hang in the event loop of Celery, as in a socket without a timeout."""
    (consumer,) = _consumers
    consumer.call_soon(time.sleep, 3600)


def _list_modules(number: int, frame: FrameType | None) -> None:
    path = Path(os.environ[MODULES])
    path.with_suffix(".new").write_text("\n".join(sorted(sys.modules)))
    path.with_suffix(".new").replace(path)


def _ready(sender: Consumer, **_: Any) -> None:
    _consumers.append(sender)
    signal.signal(DEAFEN, _deafen)
    signal.signal(WEDGE, _wedge)
    signal.signal(LIST_MODULES, _list_modules)


if __name__ == "__main__":
    worker_ready.connect(_ready, weak=False)
    worker(instance=0)
