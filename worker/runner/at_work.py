"""Find out, from another thread, what an event loop executes, by its frames and its context."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
from dataclasses import dataclass
from types import FrameType

# LangChain keeps the config of the current node in a variable of this name; LangGraph adds the node's name to it.
_CONFIG = "child_runnable_config"
_NODE = "langgraph_node"
_RUN = "run"


@dataclass(frozen=True, slots=True)
class AtWork:
    """What a loop executes now."""

    context: contextvars.Context | None
    """The context of the current task or callback."""
    at: str
    """File, line and function."""
    node: str | None = None
    """The node of the graph."""
    node_type: str | None = None
    """Its class, if it has a coroutine function `run`, as Orcheo's nodes do."""


def at_work(loop: asyncio.AbstractEventLoop, thread_id: int) -> AtWork:
    """Return what the loop in this thread executes now. To be called from another thread."""
    task = asyncio.current_task(loop)
    context = task.get_context() if task is not None else None
    frame = sys._current_frames().get(thread_id)  # noqa: SLF001 - the documented way to see a thread
    if frame is None:
        return AtWork(context, "?")
    if context is None:
        context = _context_of_callback(frame)
    at = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
    node = _node(context)
    return AtWork(context, at, node, _node_type(frame) if node else None)


def _context_of_callback(frame: FrameType | None) -> contextvars.Context | None:
    while frame is not None:
        if frame.f_code is asyncio.Handle._run.__code__:  # noqa: SLF001 - public nowhere
            context: contextvars.Context = frame.f_locals["self"]._context  # noqa: SLF001
            return context
        frame = frame.f_back
    return None


def _node(context: contextvars.Context | None) -> str | None:
    config = next((value for variable, value in (context or {}).items() if variable.name == _CONFIG), None)
    metadata = config.get("metadata") if isinstance(config, dict) else None
    node = metadata.get(_NODE) if isinstance(metadata, dict) else None
    return node if isinstance(node, str) else None


def _node_type(frame: FrameType | None) -> str | None:
    while frame is not None:
        if frame.f_code.co_name == _RUN and frame.f_code.co_flags & inspect.CO_COROUTINE:
            node = frame.f_locals.get("self")
            return type(node).__name__ if node is not None else None
        frame = frame.f_back
    return None
