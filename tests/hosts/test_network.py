"""The network does what its words say."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.hosts.network import Network, both, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no hosts: {why_not()}")

_HOSTS = ("one", "other", "third")
_PORT = 5000
_PACKETS = 400
_SILENCE_SECONDS = 0.5


class Mail:
    """A socket on each host; one packet at a time."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._sockets: dict[str, socket.socket] = {}
        for host in _HOSTS:
            with network.on(host):
                self._sockets[host] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                self._sockets[host].bind((network.address(host), _PORT))

    def seconds(self, source: str, target: str, patience: float = _SILENCE_SECONDS) -> float | None:
        """Return how long a packet takes, or None if it does not arrive."""
        self._sockets[target].settimeout(patience)
        sent = time.monotonic()
        self._sockets[source].sendto(b"x", (self.network.address(target), _PORT))
        try:
            self._sockets[target].recv(1)
        except TimeoutError:
            return None
        return time.monotonic() - sent

    def close(self) -> None:
        """Close all."""
        for each in self._sockets.values():
            each.close()


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[Mail]:
    with ExitStack() as stack:
        mail = Mail(stack.enter_context(Network(_HOSTS, tmp_path / "log")))
        stack.callback(mail.close)
        yield mail


def test_hosts_reach_each_other_and_nobody_else_is_changed(mail: Mail) -> None:
    assert all(mail.seconds(*direction) is not None for direction in both(_HOSTS[:1], _HOSTS[1:]))
    assert "to-1" not in {name for _, name in socket.if_nameindex()}
    with mail.network.on("one"):
        assert {name for _, name in socket.if_nameindex()} == {"lo", "eth0"}


def test_cut_drops_one_direction_only_and_tells_nobody(mail: Mail) -> None:
    mail.network.cut([("one", "other")])
    assert mail.seconds("one", "other") is None
    assert mail.seconds("other", "one") is not None
    assert mail.seconds("one", "third") is not None
    mail.network.cut([("other", "one")])
    assert mail.seconds("other", "one") is None
    mail.network.heal()
    assert all(mail.seconds(*direction) is not None for direction in both(["one"], ["other"]))


def test_open_connection_is_silent_while_it_is_cut_and_goes_on_afterwards(mail: Mail) -> None:
    with ExitStack() as stack:
        with mail.network.on("other"):
            listener = stack.enter_context(socket.create_server((mail.network.address("other"), _PORT)))
        with mail.network.on("one"):
            near = stack.enter_context(socket.create_connection((mail.network.address("other"), _PORT)))
        far = stack.enter_context(listener.accept()[0])
        far.settimeout(_SILENCE_SECONDS)
        mail.network.cut([("one", "other")])
        near.sendall(b"x")
        with pytest.raises(TimeoutError):
            far.recv(1)
        mail.network.heal()
        far.settimeout(10)
        assert far.recv(1) == b"x"


def test_delay_is_that_of_each_packet_in_one_direction(mail: Mail) -> None:
    mail.network.disturb([("one", "other")], delay=0.1)
    there, back = mail.seconds("one", "other"), mail.seconds("other", "one")
    assert there is not None
    assert back is not None
    assert back < 0.1 <= there
    mail.network.heal()
    healed = mail.seconds("one", "other")
    assert healed is not None
    assert healed < 0.1


def test_loss_is_the_share_that_was_asked_for(mail: Mail) -> None:
    mail.network.disturb([("one", "other")], loss=0.25)
    lost = sum(1 for _ in range(_PACKETS) if mail.seconds("one", "other", patience=0.02) is None)
    assert 0.15 < lost / _PACKETS < 0.35
