"""Start runners, wait until their executor is open, and remember whether that currently works."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from orcheo_dispatch.shared.errors import DatabaseError, DispatchError, SchemaError, SettingsError
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.worker.frames import Attached, NotAttached, Up
from orcheo_dispatch.worker.runners.fork_server import ForkServer
from orcheo_dispatch.worker.runners.memory import memory_of
from orcheo_dispatch.worker.runners.runner import Runner

FIRST_SECONDS = 300.0
"""Timeout of the first runner's start (seconds): it imports the executor, creates tables and executes a trial run."""
ATTACH_SECONDS = 60.0
_FAILING_SECONDS = 60.0
"""How long starts may fail before the worker gives up (seconds)."""
_FRAME_MARGIN = 1 << 20
_ROWS_FRAME_BYTES = 1 << 26
_ERRORS: dict[str, type[DispatchError]] = {
    each.__name__: each for each in (SettingsError, SchemaError, DatabaseError, DispatchError)
}


class Starter:
    """Start runners for one event loop. `on_frame` and `on_gone` are those of each runner."""

    def __init__(
        self, *, max_output: int, on_frame: Callable[[Runner, Up], None], on_gone: Callable[[Runner], None]
    ) -> None:
        self._limit = max(max_output + _FRAME_MARGIN, _ROWS_FRAME_BYTES)
        self._on_frame = on_frame
        self._on_gone = on_gone
        self._server = ForkServer()
        self._numbers = 0
        self._found: bytes | None = None
        self._failing_since: float | None = None
        self._last_error = ""
        self.under_way = 0
        """Number of runners that are being started and have no process yet."""

    @property
    def problem(self) -> str | None:
        """One line that says why no runner can be started; None if runners can be started."""
        return None if self._failing_since is None else f"no runner can be started: {self._last_error}"

    @property
    def is_hopeless(self) -> bool:
        """Whether `problem` has lasted so long that this process should be replaced."""
        return self._failing_since is not None and time.monotonic() - self._failing_since > _FAILING_SECONDS

    async def close(self) -> None:
        """End the remaining processes of the fork server; no runner is started afterwards."""
        await self._server.close()

    async def first(self, adopt: Callable[[Runner], None]) -> Attached:
        """Start the first runner, which opens the executor for all. Raises `DispatchError` or a subclass of it.

        If the fork server has more than one thread, for example because a plugin started one at import, it must not
        fork: each runner then imports the executor itself.
        """
        attached = await self._attached(await self._start(adopt, seconds=FIRST_SECONDS))
        if attached.threads > 1 and self._server.shares:
            log.warning("runners_not_forked", reason="threads", threads=attached.threads)
            self._server.stop_sharing(attached.server)
            attached = await self._attached(await self._start(adopt, seconds=FIRST_SECONDS))
        self._found = attached.found
        return attached

    async def spare(self, adopt: Callable[[Runner], None]) -> bool:
        """Start a runner for runs; return whether that worked. A lasting failure is logged once."""
        try:
            await self._attached(await self._start(adopt, seconds=ATTACH_SECONDS))
        except DispatchError as error:
            self._last_error = str(error)
            if self._failing_since is None:
                self._failing_since = time.monotonic()
                log.error("runner_not_started", reason=str(error))
            return False
        if self._failing_since is not None:
            self._failing_since = None
            log.info("runner_start_recovered")
        return True

    async def for_cron(self, adopt: Callable[[Runner], None]) -> Runner:
        """Start a runner that dispatches cron triggers. Raises `DispatchError`."""
        runner = await self._start(adopt, seconds=ATTACH_SECONDS)
        await self._attached(runner)
        return runner

    async def _start(self, adopt: Callable[[Runner], None], *, seconds: float) -> Runner:
        self._numbers += 1
        self.under_way += 1
        try:
            started = await self._server.start(f"runner-{self._numbers}")
            runner = Runner(
                self._numbers,
                started,
                join=self._server.join,
                on_frame=self._on_frame,
                on_gone=self._on_gone,
                limit=self._limit,
            )
            await runner.connect()
            adopt(runner)
        except (OSError, EOFError) as error:
            raise DispatchError(f"the fork server ended: {type(error).__name__}") from error
        finally:
            self.under_way -= 1
        runner.attach(self._found)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(runner.attached)
        except TimeoutError:
            runner.kill(f"the executor was not open within {seconds:g} s")
            await runner.attached
        runner.base_memory = memory_of(runner.pid)
        return runner

    async def _attached(self, runner: Runner) -> Attached:
        attached = await runner.attached
        if isinstance(attached, NotAttached):
            runner.draining = True
            runner.kill(None)
            raise _ERRORS.get(attached.error, DispatchError)(attached.reason)
        return attached
