"""Find out what blocks the event loop of a runner, from a thread of the runner itself.

The main process notices without help that a runner does not answer. Which run and node block it can only be seen from
inside the process, and not while a call into C keeps all other threads from running.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time

from orcheo_dispatch.worker.frames import Held, encode
from orcheo_dispatch.worker.runner.at_work import at_work
from orcheo_dispatch.worker.runner.runs import run_in

HELD_SECONDS = 1.5
"""Shorter than the limit of the main process (seconds), so that it knows the run when it reports the blocked loop."""
_LOOK_SECONDS = 0.25

# Kept here because a workflow may replace them in the module, as tests that stop the clock do.
_monotonic, _sleep = time.monotonic, time.sleep


class Watch:
    """Check periodically whether the loop has answered, and report once each time that it is blocked."""

    def __init__(self, loop: asyncio.AbstractEventLoop, side: socket.socket) -> None:
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._side = side
        self._idle = True
        self._answered = True
        self._asked_at = _monotonic()
        self._asked_active = False
        self._reported = False
        self._active = threading.Event()
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def watch(self, active: bool) -> None:
        """Check only while there are runs, and until the loop has answered once after the last of them."""
        if active:
            self._active.set()
        else:
            self._active.clear()

    def _run(self) -> None:
        while True:
            if self._idle:
                self._active.wait()
                self._idle, self._asked_active = False, True
            _sleep(_LOOK_SECONDS)
            try:
                self._look()
            except (OSError, RuntimeError):
                # The main process has ended, or the loop is closed: this process is ending.
                return

    def _look(self) -> None:
        if self._answered:
            active = self._active.is_set()
            if not active and not self._asked_active:
                self._idle = True
                return
            self._reported, self._answered, self._asked_at, self._asked_active = False, False, _monotonic(), active
            self._loop.call_soon_threadsafe(self._answer)
        elif not self._reported and _monotonic() - self._asked_at > HELD_SECONDS:
            self._reported = True
            work = at_work(self._loop, self._loop_thread)
            self._side.sendall(encode(Held(run_in(work.context), work.at, work.node, work.node_type)))

    def _answer(self) -> None:
        self._answered = True
