"""Execute a runner from start to end: the code that the children of the fork server run."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from orcheo_dispatch.shared.errors import DatabaseError, DispatchError, SchemaError, SettingsError
from orcheo_dispatch.shared.logs.library import drop_prints, route_again
from orcheo_dispatch.shared.logs.lines import describe, log
from orcheo_dispatch.worker.executor.protocol import Stopped
from orcheo_dispatch.worker.frames import (
    PROTOCOL,
    Attach,
    Attached,
    Close,
    Cron,
    CronDone,
    Down,
    Ended,
    Frame,
    NotAttached,
    Ping,
    Pong,
    Start,
    Stop,
    Written,
)
from orcheo_dispatch.worker.runner import preload
from orcheo_dispatch.worker.runner.link import Books, Link
from orcheo_dispatch.worker.runner.loop import SharedLoop
from orcheo_dispatch.worker.runner.parent import die_with_parent, ignore_stop_signals
from orcheo_dispatch.worker.runner.runs import Runs, current_run
from orcheo_dispatch.worker.runner.threads import FairThreads
from orcheo_dispatch.worker.runner.watch import Watch

EXIT_LOOP_ENDED = 76
"""Exit status of a runner whose event loop was stopped or closed by workflow code."""
EXIT_LINK_LOST = 77
"""Exit status of a runner whose socket was closed: by workflow code, or because the main process has ended."""
_CLOSE_SECONDS = 5.0
_PONG_SECONDS = 0.001
_ERRORS: tuple[type[DispatchError], ...] = (SettingsError, SchemaError, DatabaseError)


def run(link: socket.socket, side: socket.socket) -> None:
    """Serve the main process at the other end of `link` until it closes the runner or ends. Never returns."""
    die_with_parent(preload.SERVER)
    # If a workflow signals its process group, as shells do, only this process and its children get the signal.
    os.setpgid(0, 0)
    ignore_stop_signals()
    state = preload.STATE
    if state is None:
        # The fork server has not imported the executor.
        state = preload.prepare()
    _Runner(state, link, side).serve()


class _Runner:
    """One event loop in the main thread, where signal handlers can be set, as in the stock worker."""

    def __init__(self, state: preload.State, link: socket.socket, side: socket.socket) -> None:
        self._state = state
        self._loop = SharedLoop()
        asyncio.set_event_loop(self._loop)
        self._loop.set_default_executor(FairThreads(current_run))
        self._link = Link(self._take, self._lost)
        self._watch = Watch(self._loop, side)
        self._runs: Runs | None = None
        self._books: Books | None = None
        self._closing = False
        self._tasks: set[asyncio.Task[Any]] = set()
        # Frames may arrive from here on.
        self._loop.run_until_complete(self._loop.create_unix_connection(lambda: self._link, sock=link))

    def serve(self) -> None:
        drop_prints()
        while True:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                # A workflow that calls sys.exit() ends its own run only.
                log.warning("sys_exit_blocked", **describe(error))
                continue
            except BaseException as error:  # noqa: BLE001 - the loop itself was broken by workflow code
                log.error("loop_failed", **describe(error))
            break
        os._exit(0 if self._closing else EXIT_LOOP_ENDED)

    def _take(self, frame: Down) -> None:
        match frame:
            case Start():
                assert self._runs is not None
                self._runs.start(frame)
            case Stop():
                assert self._runs is not None
                self._runs.stop(frame.key, Stopped(frame.status, frame.reason))
            case Written():
                assert self._books is not None
                self._books.written(frame)
            case Ping():
                # Answer from a timer: a workflow may have stopped the clock that all timers depend on.
                self._loop.call_later(_PONG_SECONDS, self._link.send, Pong(frame.number))
            case Attach():
                self._spawn(self._attach(frame))
            case Cron():
                self._spawn(self._dispatch_cron(frame.number))
            case Close():
                self._spawn(self._close())

    def _spawn(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attach(self, frame: Attach) -> None:
        try:
            self._link.send(await self._attached(frame))
        except DispatchError as error:
            kind = next(each for each in (*_ERRORS, DispatchError) if isinstance(error, each))
            self._link.send(NotAttached(kind.__name__, str(error)))
        except Exception as error:  # noqa: BLE001 - an executor may raise anything
            at = describe(error).get("at", "?")
            name = self._state.settings.executor if self._state.settings else "?"
            reason = f"executor {name!r} did not open: {type(error).__name__} at {at}"
            self._link.send(NotAttached(DispatchError.__name__, reason))

    async def _attached(self, frame: Attach) -> Attached:
        state = self._state
        if state.error is not None:
            raise state.error
        assert state.executor is not None
        assert state.settings is not None
        executor: Any = state.executor
        self._runs = Runs(state.executor, self._report, on_busy=self._watch.watch, max_output=state.settings.max_output)
        self._books = Books(self._link.send, self._runs.provided)
        found = frame.found
        books = hasattr(executor, "attach")
        if books:
            if found is None:
                found = await executor.open()
            await executor.attach(self._books, found)
        elif hasattr(executor, "open"):
            await executor.open()
        route_again()
        return Attached(PROTOCOL, found, books, hasattr(executor, "dispatch_cron"), state.threads, os.getppid())

    def _report(self, ended: Ended) -> None:
        # A workflow may have configured logging.
        route_again()
        self._link.send(ended)

    async def _dispatch_cron(self, number: int) -> None:
        executor: Any = self._state.executor
        try:
            report = await executor.dispatch_cron()
        except DatabaseError as error:
            answer: Frame = CronDone(number, "database_away", 0, {}, str(error))
        except Exception as error:  # noqa: BLE001 - Orcheo's, or a bug: cron continues at the next interval
            found = describe(error)
            answer = CronDone(number, "failed", 0, {}, f"{found.get('error', '?')} at {found.get('at', '?')}")
        else:
            answer = CronDone(number, report.outcome, report.runs, dict(report.skipped), report.reason)
        self._link.send(answer)

    async def _close(self) -> None:
        executor: Any = self._state.executor
        close = getattr(executor, "close", None)
        if close is not None and self._runs is not None:
            try:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await close()
            except Exception as error:  # noqa: BLE001 - an executor that cannot close must not keep the process
                log.warning("executor_not_closed", **describe(error))
        self._closing = True
        self._loop.stop()

    def _lost(self) -> None:
        # Exit at once: without the main process nothing that this process still does may have an effect.
        os._exit(0 if self._closing else EXIT_LINK_LOST)
