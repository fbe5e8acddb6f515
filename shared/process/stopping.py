"""Handle signals: stop in order, stop at once, or ignore.

SIGTERM and SIGINT  end in order; a worker lets its runs finish. The second one ends the drain time.
SIGQUIT             end at once; what a worker executes is settled by `ORCHEO_DISPATCH_LOST_RUNS`.
SIGHUP              a terminal was closed: end in order. Without one: ignored, since settings are read at start only.

Celery's own handlers cut runs short at SIGQUIT and at a second SIGINT, start the program anew at SIGHUP, and write to
stdout, where a handler can block for ever. `REMAP_SIGTERM` in the environment makes SIGTERM a SIGQUIT.
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
    """Have the Celery workers of this app take signals as above.

    `cut_short` tells whether a SIGQUIT at this moment ends something that is not handed over: then the exit code is 1.
    """
    one_at_a_time = threading.Lock()

    def tell(name: str, code: int) -> None:
        with one_at_a_time:
            worker_shutting_down.send(sender=app, sig=name, how="Warm", exitcode=code)

    def stop(number: int, _: FrameType | None) -> None:
        code = int(number == signal.SIGQUIT and cut_short())
        # On a thread: a handler may have interrupted who holds the lock of a log or of a condition.
        threading.Thread(target=tell, args=(signal.Signals(number).name, code), name="signal", daemon=True).start()
        state.should_stop = max(code, state.should_stop or 0)

    def take(*_: Any, **__: Any) -> None:
        for number in (*_IN_ORDER, signal.SIGQUIT):
            signal.signal(number, stop)
        take_hangups(stop)

    class TakeSignals(bootsteps.StartStopStep):  # type: ignore[misc] # Celery has no types for it
        """Takes the signals back from Celery, which installs its handlers just before its first step starts."""

        def start(self, _: Any) -> None:
            take()

    # From before the start of whatever has to end in order.
    worker_init.connect(take, weak=False)
    app.steps["worker"].add(TakeSignals)


def take_hangups(stop: Callable[[int, FrameType | None], None]) -> None:
    """End by `stop` when the terminal of this process is closed; without a terminal, log a SIGHUP and continue.

    One that is ignored from the start, as under `nohup`, stays ignored.
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
