"""Start runners as forks of a standard library fork server that has imported the executor once.

`multiprocessing`'s fork server ends with this process, starts again if it is killed, and reports the exit status of
each of its children. docs/decisions has its limits and what is done about them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerProcess

ENVIRONMENT = "orcheo_dispatch.worker.runner.environment"
PRELOAD = "orcheo_dispatch.worker.runner.preload"
NO_PRELOAD = "ORCHEO_DISPATCH_INTERNAL_NO_PRELOAD"
PARENT = "ORCHEO_DISPATCH_INTERNAL_PARENT"
"""Same values as in `orcheo_dispatch.worker.runner.preload`, which this process does not import."""


_CLOSE_SECONDS = 2.0
_starter = ThreadPoolExecutor(1, thread_name_prefix="fork-server")
"""Its thread starts one process at a time, and lives as long as this process: the kernel ends the fork server when the
thread that started it ends (prctl(2), PR_SET_PDEATHSIG)."""


def start_importing() -> None:
    """Start the fork server, which imports the executor while this process goes on. Does not wait, and never raises.

    Not required: the first runner starts the fork server if it does not run.
    """
    _prepare()
    _starter.submit(forkserver.ensure_running)


@dataclass(frozen=True, slots=True)
class Started:
    """A runner's process, and this process's ends of its sockets."""

    process: ForkServerProcess
    link: socket.socket
    side: socket.socket


class ForkServer:
    """Start processes, one at a time."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self.shares = True
        """Whether runners share what the fork server has imported."""
        _prepare()

    async def start(self, name: str) -> Started:
        """Start a runner. Raises `OSError` or `EOFError` if the fork server ends: the next call starts another.

        The first call waits until the fork server has imported the executor.
        """
        return await asyncio.get_running_loop().run_in_executor(_starter, self._start, name)

    async def join(self, process: ForkServerProcess) -> None:
        """Wait for the end of a process, and for its status.

        This runs on the thread that starts processes: each start reaps processes that have ended, and if two threads
        read a status at the same time, only one gets it.
        """
        await asyncio.get_running_loop().run_in_executor(_starter, process.join)

    def stop_sharing(self, server: int) -> None:
        """Replace the fork server that has this process ID by one that does not import the executor."""
        self.shares = False
        os.environ[NO_PRELOAD] = "1"
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)

    async def close(self) -> None:
        """End the resource tracker that multiprocessing runs beside the fork server, once all runners have ended.

        It would end by itself some milliseconds after this process, but a service manager kills what it finds by then.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await asyncio.get_running_loop().run_in_executor(_starter, _stop_resource_tracker)

    def _start(self, name: str) -> Started:
        link, far_link = socket.socketpair()
        side, far_side = socket.socketpair()
        try:
            # The target imports what a runner executes by name, in the runner: it is never imported here.
            process = self._context.Process(target=_run, args=(far_link, far_side), name=name)
            process.start()
        except BaseException:
            link.close()
            side.close()
            raise
        finally:
            far_link.close()
            far_side.close()
        link.setblocking(False)
        side.setblocking(False)
        return Started(process, link, side)


def _stop_resource_tracker() -> None:
    # There is no public function for this. It waits for the tracker's process to end.
    stop: Callable[[], None] | None = getattr(resource_tracker._resource_tracker, "_stop", None)  # noqa: SLF001
    if stop is not None:
        stop()


def _run(link: socket.socket, side: socket.socket) -> None:
    from orcheo_dispatch.worker.runner.process import run

    run(link, side)


def _prepare() -> None:
    # Preload this module as well: a child unpickles its target function from it.
    forkserver.set_forkserver_preload([ENVIRONMENT, PRELOAD, __name__])
    os.environ[PARENT] = str(os.getpid())
    _hide_main_module()


def _hide_main_module() -> None:
    """Prevent children from executing this process's main module: multiprocessing runs it again in each child.

    It does not if `__main__` belongs to a package, as with `python -m celery`.
    """
    main = sys.modules["__main__"]
    name = getattr(main.__spec__, "name", "")
    if name != "__main__" and not name.endswith(".__main__"):
        main.__spec__ = importlib.util.find_spec("celery.__main__")
