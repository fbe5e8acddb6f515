"""Tell the service manager about this process, by the protocol of sd_notify(3).

A library for this is one datagram long. Nothing here waits, and nothing raises: a service manager that does not
listen must not keep a process from its work.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping

_FEEDS_A_TIMEOUT = 4
_MICROSECONDS = 1_000_000


class ServiceManager:
    """The service manager that started this process, if there is one; otherwise every call does nothing.

    Make one at the start of a process, before it has children: their environment must not name its socket.
    Only the process that was started may speak: no child of it, such as a runner of a worker, uses this.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Take `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` out of `environment`."""
        self._address = _address(environment.pop("NOTIFY_SOCKET", ""))
        patience, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        watched = patience.isdecimal() and pid in ("", str(os.getpid()))
        self.watchdog = int(patience) / _MICROSECONDS if watched else 0.0
        """Seconds without `feed` after which this process is killed; 0 where it is not watched."""
        self._fed_at = float("-inf")
        self._status = ""

    def ready(self, status: str) -> None:
        """Say that the process is at work; from now on it has to `feed`."""
        self._status = status
        self._send("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """Say in a few words what the process does; sent where that has changed."""
        if status != self._status:
            self._status = status
            self._send(f"STATUS={status}")

    def feed(self) -> None:
        """Say that the process makes progress. May be called as often as one likes."""
        now = time.monotonic()
        if self.watchdog and now - self._fed_at >= self.watchdog / _FEEDS_A_TIMEOUT:
            self._fed_at = now
            self._send("WATCHDOG=1")

    def stopping(self, status: str, seconds: float = 0.0) -> None:
        """Announce that the process is stopping by itself and may take this many seconds, whatever its unit says."""
        longer = [f"EXTEND_TIMEOUT_USEC={int(seconds * _MICROSECONDS)}"] if seconds else []
        self._status = status
        self._send("STOPPING=1", f"STATUS={status}", *longer)

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                # A service manager that is itself stuck must not hold us up.
                sender.setblocking(False)
                sender.sendto("\n".join(lines).encode(), self._address)
        except OSError:
            return


def _address(name: str) -> str:
    """Return the socket's address: a path, or `@` and the name of an abstract socket; None for anything else."""
    if name.startswith("@"):
        return f"\0{name[1:]}"
    return name if name.startswith("/") else ""
