"""Import once, in the fork server, what every runner needs: `STATE`, created at import.

The standard library's fork server swallows an ImportError of a preloaded module, and ends on any other exception. So
nothing is raised here: the first runner reports the error, and the worker raises it.
"""

from __future__ import annotations

import gc
import importlib
import os
import threading
from dataclasses import dataclass
from typing import Any

from orcheo_dispatch.shared.errors import DispatchError, SettingsError
from orcheo_dispatch.shared.logs import setup as logs
from orcheo_dispatch.shared.logs.library import route_again
from orcheo_dispatch.shared.logs.lines import describe
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.worker.executor.protocol import Executor, load_executor
from orcheo_dispatch.worker.runner.parent import die_with_parent, ignore_stop_signals

NO_PRELOAD = "ORCHEO_DISPATCH_INTERNAL_NO_PRELOAD"
"""Set by the main process if preloaded modules must not be forked: each runner then imports them itself."""
PARENT = "ORCHEO_DISPATCH_INTERNAL_PARENT"
"""The process id of the main process, which sets it for the fork server."""


@dataclass(frozen=True, slots=True)
class State:
    """What a runner starts with."""

    settings: Settings | None
    executor: Executor | None
    error: DispatchError | None
    threads: int
    """Python threads in the process that imported the executor; a fork would copy their locks but not the threads."""


def prepare() -> State:
    """Load settings and executor. Never raises."""
    # Imports create many objects that stay. Collections meanwhile find nothing, and take an eighth of the time.
    gc.disable()
    try:
        return _prepare()
    finally:
        gc.enable()


def _prepare() -> State:
    try:
        settings = Settings.load()
        logs.configure(settings)
        executor = load_executor(settings.executor)
        # Orcheo configures logging when it is imported.
        route_again()
        before_fork: Any = getattr(executor, "prepare", None)
        if before_fork is not None:
            before_fork()
    except DispatchError as error:
        return State(None, None, error, threading.active_count())
    except Exception as error:  # noqa: BLE001 - any exception that a module raises when imported
        name, at = type(error).__name__, describe(error).get("at", "?")
        variable = os.environ.get("ORCHEO_WORKER_EXECUTOR", "orcheo")
        wrong = SettingsError(f"executor {variable!r} cannot be prepared: {name} at {at}")
        return State(None, None, wrong, threading.active_count())
    # Import the modules of a runner, so that no child imports them again. By name, because they import this module.
    importlib.import_module("orcheo_dispatch.worker.runner.process")
    # Imported objects live as long as the process. A garbage collection in a runner would copy their pages.
    gc.collect()
    gc.freeze()
    return State(settings, executor, None, threading.active_count())


def is_fork_server() -> bool:
    """Return whether this process is the fork server, rather than a test that imports this module."""
    return threading.current_thread() is threading.main_thread() and "multiprocessing.forkserver" in _command()


def _command() -> str:
    with open("/proc/self/cmdline", "rb") as file:  # noqa: PTH123 - imports nothing more
        return file.read().decode(errors="replace")


STATE: State | None = None
SERVER = os.getpid()
"""The process that imported this module: the fork server, which is the parent of each runner."""
if is_fork_server():
    die_with_parent(int(os.environ.pop(PARENT)))
    # Only the main process talks to the service manager.
    os.environ.pop("NOTIFY_SOCKET", None)
    ignore_stop_signals()
    if not os.environ.get(NO_PRELOAD):
        STATE = prepare()
