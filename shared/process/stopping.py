"""Handle signals: stop gracefully, stop immediately, or ignore.

SIGTERM and SIGINT  stop gracefully; a worker lets its runs finish. A second signal ends the drain time.
SIGQUIT             stop immediately; a worker's runs are settled according to `ORCHEO_DISPATCH_LOST_RUNS`.
SIGHUP              with a terminal: stop gracefully. Without one: ignored, since settings are read only at start.

Celery's own handlers cut runs short at SIGQUIT and at a second SIGINT, restart the program at SIGHUP, and write to
stdout, which can block forever. With `REMAP_SIGTERM` in the environment, they treat SIGTERM as SIGQUIT.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from celery import Celery, bootsteps
from celery.signals import worker_init, worker_shutting_down
from celery.worker import state

from orcheo_dispatch.shared.logs.lines import log

_IN_ORDER = (signal.SIGTERM, signal.SIGINT)


def obey_signals(app: Celery, cut_short: Callable[[], bool] = lambda: False) -> None:
    """Make the Celery workers of this app handle signals as described above.

    `cut_short` returns whether a SIGQUIT now would end a run that is not handed over; the exit code is then 1.
    """
    one_at_a_time = threading.Lock()

    def tell(name: str, code: int) -> None:
        with one_at_a_time:
            worker_shutting_down.send(sender=app, sig=name, how="Warm", exitcode=code)

    def stop(number: int, _: FrameType | None) -> None:
        code = int(number == signal.SIGQUIT and cut_short())
        # On a thread, since the interrupted code may hold the lock of a log or of a condition.
        threading.Thread(target=tell, args=(signal.Signals(number).name, code), name="signal", daemon=True).start()
        state.should_stop = max(code, state.should_stop or 0)

    def take(*_: Any, **__: Any) -> None:
        for number in (*_IN_ORDER, signal.SIGQUIT):
            signal.signal(number, stop)
        take_hangups(stop)

    class TakeSignals(bootsteps.StartStopStep):  # type: ignore[misc] # Celery has no types for it
        """Replaces Celery's signal handlers, which Celery installs just before its first step starts."""

        def start(self, _: Any) -> None:
            take()

    # Before anything starts that must be stopped gracefully.
    worker_init.connect(take, weak=False)
    app.steps["worker"].add(TakeSignals)


def take_hangups(stop: Callable[[int, FrameType | None], None]) -> None:
    """Call `stop` when the terminal of this process is closed; without a terminal, log SIGHUP and continue.

    If SIGHUP is ignored from the start, as under `nohup`, it stays ignored.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return
    signal.signal(signal.SIGHUP, stop if _has_terminal() else _ignore)


def _ignore(*_: Any) -> None:
    threading.Thread(target=_log_hangup, name="signal", daemon=True).start()


def _log_hangup() -> None:
    log.warning("sighup_ignored")


def _has_terminal() -> bool:
    try:
        return sys.stdin.isatty()
    except (AttributeError, ValueError):
        return False
