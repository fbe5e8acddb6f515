"""A Beat that wedges after its third tick, as Celery's is known to (celery#1495): run as a program by the tests."""

from __future__ import annotations

import time
from typing import Any

from celery.signals import before_task_publish

from orcheo_dispatch.dispatcher.beat import make_beat_app
from orcheo_dispatch.shared.logs import setup as logs
from orcheo_dispatch.shared.settings.model import Settings

_ticks = 0


def _wedge(**_: Any) -> None:
    global _ticks  # noqa: PLW0603
    _ticks += 1
    if _ticks > 3:
        time.sleep(3600)


if __name__ == "__main__":
    settings = Settings.load()
    logs.configure(settings)
    before_task_publish.connect(_wedge, weak=False)
    make_beat_app(settings).Beat(quiet=True).run()
