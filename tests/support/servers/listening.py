"""A service manager to test with: a real datagram socket that hears what processes say."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.processes.processes import until

_MOST_BYTES = 4096


class Listener:
    """Hears the messages of sd_notify(3); a path in `folder`, or without one an abstract address."""

    def __init__(self, folder: Path | None = None) -> None:
        self.messages: list[str] = []
        self.address = str(folder / "notify") if folder else f"@orcheo-{os.getpid()}-{secrets.token_hex(4)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address.replace("@", "\0", 1) if folder is None else self.address)
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Wakes the thread, which is waiting.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def hears(self, line: str, *, times: int = 1) -> str:
        """Wait until so many messages hold this line; return the newest of them."""
        until(lambda: len(self._with(line)) >= times, what=f"{times} of {line!r} in {self.messages}")
        return self._with(line)[-1]

    def count(self, line: str) -> int:
        """Return how many messages held this line so far."""
        return len(self._with(line))

    def _with(self, line: str) -> list[str]:
        return [message for message in self.messages if line in message.splitlines()]

    def _listen(self) -> None:
        while message := self._socket.recv(_MOST_BYTES):
            self.messages.append(message.decode())
