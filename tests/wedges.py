"""An executor for tests: its runs break the process around them, as Celery is known to break by itself."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from typing import Any

from shared.consumer import Consumer
from worker.executor import Run


async def play(run: Run) -> Mapping[str, Any]:
    """Do what `inputs["do"]` says."""
    _ACTS[run.inputs.get("do", "echo")](_consumer())
    return {}


def _consumer() -> Consumer:
    return next(each for each in gc.get_objects() if isinstance(each, Consumer))


def _echo(consumer: Consumer) -> None:
    """Do nothing."""


def _deafen(consumer: Consumer) -> None:
    """Stay connected and consume nothing (celery#8030, #8091, #9191)."""
    consumer.call_soon(consumer.task_consumer.cancel)


def _wedge(consumer: Consumer) -> None:
    """Hang in the event loop of Celery, as in a socket without a timeout."""
    consumer.call_soon(time.sleep, 3600)


_ACTS = {"echo": _echo, "deafen": _deafen, "wedge": _wedge}
