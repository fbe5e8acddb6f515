"""The proxy as a child process: a link for each process and server, and what may be done to links."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from orcheo_dispatch.ops.sandbox.child import end, free_port, last_lines, launch

_ROOT = Path(__file__).parents[2]
_START_SECONDS = 30.0
_ANSWER_SECONDS = 10.0


class Server(StrEnum):
    """What a link leads to."""

    POSTGRES = "postgres"
    REDIS = "redis"
    SLOTS = "slots"


class Links:
    """A link from each of `processes` to each server; `urls` are the servers' own. None outlives this process."""

    def __init__(self, processes: Iterable[str], urls: dict[Server, str], log: Path) -> None:
        self._urls = urls
        self._log = log
        self._control = free_port()
        self._ports = {(process, server): free_port() for process in processes for server in Server}
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def url(self, process: str, server: Server) -> str:
        """Return the server's URL as this process is to see it."""
        parts = urlsplit(self._urls[server])
        login = parts.netloc.rpartition("@")[0]
        address = f"127.0.0.1:{self._ports[process, server]}"
        return urlunsplit(parts._replace(netloc=f"{login}@{address}" if login else address))

    def drop(self, server: Server) -> None:
        """Reset all connections to a server."""
        self._tell("drop", self._routes(server))

    def delay(self, server: Server, seconds: float) -> None:
        """Have all bytes from and to a server take so much longer."""
        self._tell("delay", self._routes(server), seconds)

    def hold(self, server: Server, process: str | None = None) -> None:
        """Let no more bytes through, of one process or of all; connections stay open."""
        self._tell("hold", self._routes(server, process))

    def half_close(self, server: Server) -> None:
        """Have the server see all connections closed, and the processes see nothing."""
        self._tell("half_close", self._routes(server))

    def heal(self, server: Server) -> None:
        """Deliver what was held back, and be a plain wire again."""
        self._tell("heal", self._routes(server))

    def __enter__(self) -> Self:
        routes = [
            f"{_name(process, server)}:{port}:{urlsplit(self._urls[server]).port}"
            for (process, server), port in self._ports.items()
        ]
        command = [sys.executable, "-m", "tests.faults.proxy", str(self._control), *routes]
        self._process = launch(command, log=self._log, directory=_ROOT)
        deadline = time.monotonic() + _START_SECONDS
        while self._socket is None:
            try:
                self._socket = socket.create_connection(("127.0.0.1", self._control), _ANSWER_SECONDS)
            except ConnectionRefusedError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the proxy did not start: {last_lines(self._log)}") from None
                time.sleep(0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            end(self._process)

    def _routes(self, server: Server, process: str | None = None) -> list[str]:
        return [_name(*key) for key in self._ports if key[1] is server and process in {None, key[0]}]

    def _tell(self, what: str, routes: list[str], seconds: float = 0.0) -> None:
        assert self._socket is not None
        self._socket.sendall(json.dumps({"do": what, "routes": routes, "seconds": seconds}).encode() + b"\n")
        if not self._socket.recv(16).startswith(b"ok"):
            raise RuntimeError(f"the proxy did not obey: {last_lines(self._log)}")


def _name(process: str, server: Server) -> str:
    return f"{process}/{server}"
