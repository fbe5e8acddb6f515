"""Do the work of process 1 in a container without an init: reap orphans and forward signals.

A program that a workflow starts may leave children behind. They become children of process 1 and stay zombies until it
waits for them. A worker cannot wait for children that it did not start: it would take the exit status of those that
it did from `subprocess` and asyncio. So process 1 stays aside, and the command runs as its child.
"""

from __future__ import annotations

import os
import signal

_PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGABRT,
)
_WAITED_FOR = (*_PASSED_ON, signal.SIGCHLD)
_FROM_TERMINAL = 0x80
"""`si_code` of a signal that the kernel sends to the whole group in the foreground: the child has it already."""
_KILLED_BY = 128


def stand_aside() -> None:
    """Return at once, in a child where this is process 1. The parent ends when the child does, with its exit code.

    To be called before there are threads. Exit code of a child that a signal ended: 128 and its number.
    """
    if os.getpid() != 1:
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        received = signal.sigwaitinfo(_WAITED_FOR)
        if received.si_signo != signal.SIGCHLD:
            if received.si_code != _FROM_TERMINAL:
                # Not yet reaped, so no other process has its pid.
                os.kill(child, received.si_signo)
        elif (code := _reap(child)) is not None:
            os._exit(code)


def _reap(child: int) -> int | None:
    """Reap all that has ended; return the exit code of `child` if it was among it."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == child:
            ended = os.waitstatus_to_exitcode(status)
            code = ended if ended >= 0 else _KILLED_BY - ended
