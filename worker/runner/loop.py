"""The event loop that the runs of a runner share; no run can end it or replace its parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from orcheo_dispatch.worker.runner.runs import current_run


class SharedLoop(asyncio.SelectorEventLoop):
    """Refuse calls from runs that affect the whole process: the caller gets a `RuntimeError`."""

    def stop(self) -> None:
        """Stop the loop."""
        self._refuse("stop")
        super().stop()

    def close(self) -> None:
        """Close the loop."""
        self._refuse("close")
        super().close()

    def set_task_factory(self, factory: Any) -> None:
        """Set the task factory."""
        self._refuse("set_task_factory")
        super().set_task_factory(factory)

    def set_default_executor(self, executor: Any) -> None:
        """Set the executor that runs functions in threads."""
        self._refuse("set_default_executor")
        super().set_default_executor(executor)

    def set_exception_handler(self, handler: Callable[..., Any] | None) -> None:
        """Set the handler of exceptions in tasks that are never awaited."""
        self._refuse("set_exception_handler")
        super().set_exception_handler(handler)

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait for the executor's threads."""
        self._refuse("shutdown_default_executor")
        await super().shutdown_default_executor(timeout)

    async def shutdown_asyncgens(self) -> None:
        """Close the asynchronous generators that are not exhausted."""
        self._refuse("shutdown_asyncgens")
        await super().shutdown_asyncgens()

    def _refuse(self, what: str) -> None:
        if current_run() is not None:
            raise RuntimeError(f"{what}() is refused: the event loop is shared by the runs of this process")
