"""Report the state of this process to the service manager, with the protocol of sd_notify(3).

The protocol is one datagram, so no library is used. Nothing here waits or raises: a service manager that does not
listen must not hold up a process.
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

    Create it at the start of a process, before it has children: their environment must not name the socket.
    Only the process that the service manager started may use it, none of its children, such as a worker's runners.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Remove `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` from `environment` and use their values."""
        self._address = _address(environment.pop("NOTIFY_SOCKET", ""))
        patience, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        watched = patience.isdecimal() and pid in ("", str(os.getpid()))
        self.watchdog = int(patience) / _MICROSECONDS if watched else 0.0
        """Seconds without `feed` after which this process is killed; 0 without a watchdog."""
        self._fed_at = float("-inf")
        self._status = ""

    def ready(self, status: str) -> None:
        """Report that the process is ready; from now on it has to call `feed`."""
        self._status = status
        self._send("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """Report in a few words what the process does; sent only if that has changed."""
        if status != self._status:
            self._status = status
            self._send(f"STATUS={status}")

    def feed(self) -> None:
        """Report that the process makes progress. May be called as often as needed."""
        now = time.monotonic()
        if self.watchdog and now - self._fed_at >= self.watchdog / _FEEDS_A_TIMEOUT:
            self._fed_at = now
            self._send("WATCHDOG=1")

    def stopping(self, status: str, seconds: float = 0.0) -> None:
        """Report that the process is stopping by itself and may take this many seconds, whatever its unit allows."""
        longer = [f"EXTEND_TIMEOUT_USEC={int(seconds * _MICROSECONDS)}"] if seconds else []
        self._status = status
        self._send("STOPPING=1", f"STATUS={status}", *longer)

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                # A service manager that hangs must not hold up this process.
                sender.setblocking(False)
                sender.sendto("\n".join(lines).encode(), self._address)
        except OSError:
            return


def _address(name: str) -> str:
    """Return the socket's address for a path or, after `@`, an abstract socket's name; empty for anything else."""
    if name.startswith("@"):
        return f"\0{name[1:]}"
    return name if name.startswith("/") else ""
