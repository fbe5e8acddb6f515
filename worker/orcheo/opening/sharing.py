"""Share between runs what is made from code alone: compiled scripts and the type hints of state classes.

A graph is built anew for each run, since its nodes hold the state of one run. Compiling its script again, and resolving
the annotations of its state again, gives the same results each time, at a sixth of the CPU time of a trivial run.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import lru_cache
from operator import attrgetter
from types import FunctionType, MethodType
from typing import Any

from orcheo_dispatch.worker.books.workflows import MAX_VERSIONS

_LOADER, _COMPILE = "orcheo.graph.ingestion.loader", "compile"
_GRAPH, _TYPE_HINTS = "langgraph.graph.state", "get_type_hints"


def share_code() -> None:
    """Have Orcheo compile each script once per process, and LangGraph resolve the type hints of a class once.

    Code objects cannot be changed, and each caller gets type hints in a dict of its own. The newest `MAX_VERSIONS`
    scripts are kept, and the hints of classes and functions of imported modules: those that a script defines exist for
    one run. Errors are not kept. Does nothing where LangGraph has no such name, and nothing when called again.
    """
    loader = importlib.import_module(_LOADER)
    if not hasattr(loader, _COMPILE):
        # A name of the module precedes the built-in function.
        setattr(loader, _COMPILE, lru_cache(maxsize=MAX_VERSIONS)(compile))
    graph = importlib.import_module(_GRAPH)
    resolve = getattr(graph, _TYPE_HINTS, None)
    if isinstance(resolve, FunctionType) and not hasattr(resolve, "__wrapped__"):
        setattr(graph, _TYPE_HINTS, _remembered(resolve))


def _remembered(resolve: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    known: dict[tuple[Any, bool], dict[str, Any]] = {}

    def get_type_hints(of: Any, *arguments: Any, include_extras: bool = False, **others: Any) -> dict[str, Any]:
        key = of.__func__ if isinstance(of, MethodType) else of
        if arguments or others or not isinstance(key, type | FunctionType):
            return resolve(of, *arguments, include_extras=include_extras, **others)
        hints = known.get((key, include_extras))
        if hints is None:
            hints = resolve(of, include_extras=include_extras)
            if _is_of_imported_module(key):
                known[key, include_extras] = hints
        return dict(hints)

    get_type_hints.__wrapped__ = resolve  # type: ignore[attr-defined]
    return get_type_hints


def _is_of_imported_module(key: Any) -> bool:
    """Return whether a module that was imported, and so stays, has this class or function under its own name."""
    module = sys.modules.get(key.__module__)
    if module is None or module.__spec__ is None:
        return False
    try:
        return attrgetter(key.__qualname__)(module) is key
    except AttributeError:
        return False
