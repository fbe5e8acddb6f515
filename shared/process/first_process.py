"""Do the work of process 1 in a container without an init: reap orphans and forward signals.

A program started by a workflow may leave children, which become children of process 1 and stay zombies until it waits
for them. A worker cannot wait for arbitrary children: it would take the exit statuses that `subprocess` and asyncio
wait for. So process 1 only reaps and forwards, and the command runs as its child.
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
"""`si_code` of a signal that the kernel sent to the whole foreground group: the child has received it already."""
_KILLED_BY = 128


def stand_aside() -> None:
    """Return immediately; if this is process 1, return in a child, and exit the parent with the child's exit code.

    Call it before starting threads. If a signal ended the child, the exit code is 128 plus the signal's number.
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
                # The child is not reaped yet, so no other process has its pid.
                os.kill(child, received.si_signo)
        elif (code := _reap(child)) is not None:
            os._exit(code)


def _reap(child: int) -> int | None:
    """Reap all children that have ended; return the exit code of `child` if it is one of them."""
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
