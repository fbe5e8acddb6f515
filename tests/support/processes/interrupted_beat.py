"""A Beat that is told to stop while Python ignores exceptions, in a finalizer: run as a program by the tests."""

from __future__ import annotations

import signal
from typing import Any

from celery.signals import before_task_publish

from orcheo_dispatch.dispatcher.beat import make_beat_app
from orcheo_dispatch.shared.logs import setup as logs
from orcheo_dispatch.shared.settings.model import Settings


class _Finalized:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def _finalize(**_: Any) -> None:
    before_task_publish.disconnect(_finalize)
    _Finalized()


if __name__ == "__main__":
    settings = Settings.load()
    logs.configure(settings)
    before_task_publish.connect(_finalize, weak=False)
    make_beat_app(settings).Beat(quiet=True).run()
