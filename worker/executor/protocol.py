"""Define the executor protocol, and load the executor that the settings name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.ledger.runs import Run
from orcheo_dispatch.shared.settings.environment import export_values
from orcheo_dispatch.shared.settings.policies import ORCHEO_EXECUTOR

__all__ = ["Executor", "FunctionExecutor", "Output", "Run", "RunRejectedError", "Stopped", "Waiting", "load_executor"]

_ORCHEO_PATH = "orcheo_dispatch.worker.orcheo.executor:OrcheoExecutor"
_VARIABLE = "ORCHEO_WORKER_EXECUTOR"


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why the worker cancels a run: `error.args[0]` of the `asyncio.CancelledError` that its executor gets."""

    status: str | None
    """The run's future status; None if another worker may hold it or an operator decides: write no more of it."""
    reason: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """What `execute` returns for a run that has stopped at an interrupt, and can continue from a stored checkpoint."""

    output: Mapping[str, Any] | None
    """Its state so far."""
    checkpoint_id: str
    interrupts: int
    """How many interrupts wait for an answer."""


type Output = Mapping[str, Any] | Waiting | None
"""The run's `output_payload`, or where it waits for an answer."""


class RunRejectedError(Exception):
    """The run must not be executed (its workflow is archived or gone): it is cancelled with this reason."""


@runtime_checkable
class Executor(Protocol):
    """Execute runs on the event loop of a runner, a process that executes runs of one workspace.

    `execute` returns the run's `output_payload`. It raises to fail the run and `RunRejectedError`
    to cancel it. It is cancelled (`asyncio.CancelledError`) on a timeout, a cancelled run, a lost fence
    and at the end of a drain; the error's first argument is a `Stopped`. It never changes the status of
    a run: only the worker does.

    It is created once per worker, in the process that runners are forked from: it must not start a thread or open a
    connection before `open`. An executor may have `async open()` and `async close()`, called once per runner around
    all of its runs; with `async attach()`, `open` is called in the first runner only, and `attach` in each.

    An executor that can create the runs of due cron triggers has `async dispatch_cron()`, which returns a `CronReport`.
    It is called in a runner of its own, between `open` and `close`. Two workers may call it at the same time: it must
    create no run twice.
    """

    async def execute(self, run: Run) -> Output:
        """Execute one run and return its output payload, or where it waits for an answer."""
        ...


class FunctionExecutor:
    """An executor that calls one async function."""

    def __init__(self, function: Callable[[Run], Awaitable[Mapping[str, Any] | None]]) -> None:
        self._function = function

    async def execute(self, run: Run) -> Mapping[str, Any] | None:
        """Call the function."""
        return await self._function(run)


def load_executor(name: str) -> Executor:
    """Return the executor named `name`: `orcheo`, or `package.module:name`.

    The name may refer to an executor, a class or function without arguments that creates one, or an
    `async def` that takes a run. Raises `SettingsError` if it is none of these.
    """
    path = _ORCHEO_PATH if name == ORCHEO_EXECUTOR else name
    if name == ORCHEO_EXECUTOR:
        # Before the import: parts of Orcheo read the environment at import.
        export_values()
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise SettingsError.wrong(_VARIABLE, name, "'orcheo' or 'package.module:name'")
    try:
        target: Any = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        hint = " (pip install 'orcheo-dispatch[orcheo]')" if name == ORCHEO_EXECUTOR else ""
        raise SettingsError(f"{_VARIABLE}={name!r} cannot be imported: {error}{hint}") from error
    if inspect.iscoroutinefunction(target):
        return FunctionExecutor(target)
    made = target() if inspect.isclass(target) or inspect.isfunction(target) else target
    if not isinstance(made, Executor):
        raise SettingsError.wrong(_VARIABLE, name, "something with 'async def execute(run)'")
    return made
