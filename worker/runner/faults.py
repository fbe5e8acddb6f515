"""Decide, in the runner, whether an error was caused by the platform or by the workflow."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType

from orcheo_dispatch.worker.executor.protocol import RunRejectedError
from orcheo_dispatch.worker.frames import Fault

_OURS = ("orcheo_dispatch",)
_PLATFORM = (*_OURS, "orcheo", "orcheo_backend", "langgraph", "langchain_core", "psycopg", "psycopg_pool", "tenacity")
_OF_WORKFLOWS = ("orcheo.nodes", "orcheo.plugins")
"""Parts of the platform that do what a workflow tells them to."""
_DRIVERS = ("psycopg", "psycopg_pool", "tenacity")
_CERTAIN = (*_OURS, *_DRIVERS, "langgraph.pregel", "langgraph.checkpoint", "langgraph.store", "langgraph._internal")
"""An error raised anywhere else in the platform may be about the definition or the inputs of one workflow."""
_CLASSES_OF_WORKFLOWS = ("langgraph.errors", "orcheo_backend.app.repository")


def fault_of(error: BaseException) -> Fault | None:
    """Return the platform fault that `error` is; None if it was raised by workflow code or is about the workflow."""
    if isinstance(error, RunRejectedError) or any(_is_of_workflow(each) for each in _chain(error)):
        return None
    known = _known(error)
    if not known:
        return None
    # The caller of the driver says more than the place in the driver that raised it.
    _, frame, line = next((each for each in reversed(known) if not _is_in(each[0], _DRIVERS)), known[-1])
    at = f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}"
    return Fault(type(error).__name__, at, _is_in(known[-1][0], _CERTAIN))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, and those that it was raised from or while handling."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_of_workflow(error: BaseException) -> bool:
    modules = [module for module, *_ in _known(error)]
    return _is_in(type(error).__module__, _CLASSES_OF_WORKFLOWS) or any(
        _is_in(module, _OF_WORKFLOWS) or not _is_in(module, _PLATFORM) for module in modules
    )


def _known(error: BaseException) -> list[tuple[str, FrameType, int]]:
    """Return module, frame and line of each frame that the error passed through, except the standard library's."""
    found = []
    trace = error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in sys.stdlib_module_names:
            found.append((module, trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return found


def _is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == each or module.startswith(f"{each}.") for each in packages)
