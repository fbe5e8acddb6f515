"""A TCP proxy that drops, delays, holds back and half-closes, on Twisted's port forwarder; a process of its own.

`python -m tests.faults.proxy CONTROL NAME:PORT:TARGET...` listens on each PORT of 127.0.0.1 and forwards to TARGET.
On CONTROL it takes one JSON object a line, `{"do": ..., "routes": [...], "seconds": ...}`, and answers `ok`.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet import protocol, reactor
from twisted.protocols.basic import LineOnlyReceiver
from twisted.protocols.portforward import ProxyClient, ProxyClientFactory, ProxyFactory, ProxyServer

_HOST = "127.0.0.1"
_reactor: Any = reactor


class Route(ProxyFactory):
    """A port and where it leads, with what is wrong with it now."""

    noisy = False

    def __init__(self, name: str, target: int) -> None:
        super().__init__(_HOST, target)
        self.protocol = NearEnd
        self.name = name
        self.delay = 0.0
        self.held = False
        self.ends: set[End] = set()

    def drop(self) -> None:
        """Reset all connections, on both sides. New ones are taken at once."""
        for end in list(self.ends):
            end.transport.abortConnection()

    def half_close(self) -> None:
        """Close one direction of each connection: what the process says reaches nobody, and nobody tells it."""
        self.held = True
        for end in list(self.ends):
            if isinstance(end, FarEnd):
                end.transport.loseWriteConnection()

    def release(self) -> None:
        """Let go what was held back."""
        self.held = False
        for end in list(self.ends):
            end.pass_on()


class End:
    """One end of a connection; what it hears waits here until it may pass."""

    transport: Any
    peer: Any

    def start(self, route: Route) -> None:
        """Take part in the faults of the route."""
        self.route = route
        self.waiting: deque[tuple[float, bytes | None]] = deque()
        route.ends.add(self)

    def dataReceived(self, data: bytes) -> None:
        """Pass bytes on, late if need be, and never out of order."""
        self._queue(data)

    def connectionLost(self, reason: Any = None) -> None:
        """Close the other end as well, after the bytes that are still on their way."""
        self.route.ends.discard(self)
        self._queue(None)

    def pass_on(self) -> None:
        """Write what is due to the other end."""
        while self.waiting and not self.route.held and self.waiting[0][0] <= _reactor.seconds():
            data = self.waiting.popleft()[1]
            if self.peer is None:
                continue
            if data is None:
                self.peer.transport.loseConnection()
                self.peer = None
            else:
                self.peer.transport.write(data)

    def _queue(self, data: bytes | None) -> None:
        self.waiting.append((_reactor.seconds() + self.route.delay, data))
        if self.route.delay:
            _reactor.callLater(self.route.delay + 0.001, self.pass_on)
        else:
            self.pass_on()


class FarEnd(End, ProxyClient):
    """The end towards the server."""

    def connectionMade(self) -> None:
        """Join the two ends."""
        assert self.peer is not None
        self.start(self.peer.route)
        super().connectionMade()


class _Reaching(ProxyClientFactory):
    noisy = False
    protocol = FarEnd

    def clientConnectionFailed(self, connector: Any, reason: Any) -> None:
        # As from a port that nobody listens on.
        self.server.transport.abortConnection()


class NearEnd(End, ProxyServer):
    """The end towards the process under test."""

    clientProtocolFactory = _Reaching

    def connectionMade(self) -> None:
        """Reach out to the server."""
        route = self.factory
        assert isinstance(route, Route)
        self.start(route)
        super().connectionMade()


class Control(LineOnlyReceiver):
    """Takes commands."""

    delimiter = b"\n"

    def __init__(self, routes: dict[str, Route]) -> None:
        self._routes = routes

    def lineReceived(self, line: bytes) -> None:
        """Do what the line says to the routes that it names."""
        command = json.loads(line)
        for name in command["routes"]:
            _COMMANDS[command["do"]](self._routes[name], float(command.get("seconds", 0.0)))
        transport: Any = self.transport
        transport.write(b"ok\n")


def _delay(route: Route, seconds: float) -> None:
    route.delay = seconds


def _hold(route: Route, _: float) -> None:
    route.held = True


def _heal(route: Route, _: float) -> None:
    route.delay = 0.0
    route.release()


_COMMANDS: dict[str, Callable[[Route, float], None]] = {
    "drop": lambda route, _: route.drop(),
    "delay": _delay,
    "hold": _hold,
    "half_close": lambda route, _: route.half_close(),
    "heal": _heal,
}


def main(control: int, routes: list[str]) -> None:
    """Serve until killed."""
    table: dict[str, Route] = {}
    for text in routes:
        name, port, target = text.split(":")
        table[name] = Route(name, int(target))
        _reactor.listenTCP(int(port), table[name], interface=_HOST)
    commands = protocol.Factory.forProtocol(lambda: Control(table))
    commands.noisy = False
    _reactor.listenTCP(control, commands, interface=_HOST)
    _reactor.run(installSignalHandlers=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
