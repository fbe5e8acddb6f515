"""Hosts as network namespaces around a router, which drops, delays and loses packets from one host to another.

Each host has a subnet of its own and a veth pair to the router. A cut is a rule of the router's routing tables that
drops what one host sends to another: neither end is told. A disturbed direction is routed through a TUN device, whose
packets `tests/hosts/disturber.py` delays or loses. Linux' own netem is not used, since many kernels come without it.

The namespaces have no names and belong to this process: they vanish with it and with the processes in them. The
namespace of the machine is neither changed nor entered by any packet.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from orcheo_dispatch.ops.sandbox.child import end, last_lines, launch

_ROOT = Path(__file__).parents[2]
_PROGRAMS = ("ip", "nsenter")
_TUN = Path("/dev/net/tun")
_ROUTER = "router"
_DEVICE = "disturbed"
_TABLE = "100"
_OURS = "/proc/thread-self/ns/net"
_START_SECONDS = 10.0
_CLONE_NEWNET = 0x40000000

Direction = tuple[str, str]
"""From one host to another."""


def why_not() -> str | None:
    """Return why there can be no such network here, and what is missing; None if there can be one."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces take Linux and root"
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"{' and '.join(missing)} missing: install iproute2 and util-linux"
    if not _TUN.exists():
        return f"{_TUN} missing: load the kernel module tun"
    try:
        os.close(_new_namespace())
    except OSError as error:
        return f"the kernel refuses a network namespace: {error.strerror}"
    return None


class Network:
    """The hosts of these names and their router, from `with` on. Addresses are known before."""

    def __init__(self, hosts: Sequence[str], log: Path) -> None:
        self._hosts = {name: number for number, name in enumerate(hosts, start=1)}
        self._log = log
        self._namespaces: dict[str, int] = {}
        self._stack = ExitStack()
        self._disturber: subprocess.Popen[bytes] | None = None

    def address(self, host: str) -> str:
        """Return the host's address."""
        return f"10.77.{self._hosts[host]}.2"

    def command(self, host: str, command: Sequence[str]) -> list[str]:
        """Return the command that executes `command` on a host, in the same process."""
        return [str(shutil.which("nsenter")), f"--net=/proc/{os.getpid()}/fd/{self._namespaces[host]}", *command]

    @contextmanager
    def on(self, host: str) -> Iterator[None]:
        """Have this thread, and the threads and processes that it starts meanwhile, be on a host."""
        before = os.open(_OURS, os.O_RDONLY)
        try:
            os.setns(self._namespaces[host], _CLONE_NEWNET)
            yield
        finally:
            os.setns(before, _CLONE_NEWNET)
            os.close(before)

    def cut(self, directions: Iterable[Direction]) -> None:
        """Drop all packets in these directions from now on."""
        for source, target in directions:
            self._route(source, target, "blackhole")

    def disturb(self, directions: Iterable[Direction], *, delay: float = 0.0, loss: float = 0.0) -> None:
        """Delay each packet in these directions by `delay` seconds, and lose this share of them."""
        with self.on(_ROUTER):
            command = [sys.executable, "-m", "tests.hosts.disturber", _DEVICE, str(delay), str(loss)]
            self._disturber = launch(command, log=self._log, directory=_ROOT)
            for _ in range(int(_START_SECONDS / 0.02)):
                if Path(f"/proc/{self._disturber.pid}").exists() and self._has_device():
                    break
                threading.Event().wait(0.02)
            else:
                raise RuntimeError(f"packets are not disturbed: {last_lines(self._log)}")
            _ip("link", "set", _DEVICE, "up")
            _ip("route", "replace", "default", "dev", _DEVICE, "table", _TABLE)
        for source, target in directions:
            # Only what comes from the host itself, not what the device has let go again.
            self._route(source, target, "iif", f"to-{self._hosts[source]}", "lookup", _TABLE)

    def heal(self) -> None:
        """Deliver everything again, at once."""
        with self.on(_ROUTER):
            for rule in [each.split(":")[0] for each in _ip("rule", "show").splitlines()]:
                # The three that each namespace has are 0, 32766 and 32767.
                if 0 < int(rule) < 32766:
                    _ip("rule", "del", "priority", rule)
        if self._disturber is not None:
            end(self._disturber)
            self._disturber = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for name in (_ROUTER, *self._hosts):
                self._namespaces[name] = _new_namespace()
                stack.callback(os.close, self._namespaces[name])
            with self.on(_ROUTER):
                _ip("link", "set", "lo", "up")
                for name in ("ip_forward", "conf/all/forwarding"):
                    Path(f"/proc/sys/net/ipv4/{name}").write_text("1")
                for name in ("all", "default"):
                    Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0")
            for name, number in self._hosts.items():
                self._connect(name, number)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._disturber is not None:
            end(self._disturber)
        self._stack.close()

    def _connect(self, host: str, number: int) -> None:
        device = f"to-{number}"
        with self.on(_ROUTER):
            peer = ("peer", "name", "eth0", "netns", f"/proc/{os.getpid()}/fd/{self._namespaces[host]}")
            _ip("link", "add", device, "type", "veth", *peer)
            _ip("address", "add", f"10.77.{number}.1/24", "dev", device)
            _ip("link", "set", device, "up")
        with self.on(host):
            _ip("link", "set", "lo", "up")
            _ip("address", "add", f"{self.address(host)}/24", "dev", "eth0")
            _ip("link", "set", "eth0", "up")
            _ip("route", "add", "default", "via", f"10.77.{number}.1")

    def _route(self, source: str, target: str, *how: str) -> None:
        with self.on(_ROUTER):
            _ip("rule", "add", "from", self.address(source), "to", self.address(target), *how)

    @staticmethod
    def _has_device() -> bool:
        return _DEVICE in _ip("-brief", "link", "show")


def both(one: Iterable[str], other: Iterable[str]) -> tuple[Direction, ...]:
    """Return both directions between each host of the one group and each of the other."""
    others = tuple(other)
    there = tuple((a, b) for a in one for b in others if a != b)
    return (*there, *((b, a) for a, b in there))


def _new_namespace() -> int:
    """Return a descriptor of a new network namespace, which lasts as long as the descriptor or a process in it."""
    found: list[int | OSError] = []

    def make() -> None:
        # This thread alone leaves the namespace of the process, and ends.
        try:
            os.unshare(_CLONE_NEWNET)
            found.append(os.open(_OURS, os.O_RDONLY))
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(found[0], OSError):
        raise found[0]
    return found[0]


def _ip(*arguments: str) -> str:
    """Run `ip` where this thread is. Raises `RuntimeError` with what it says where it fails."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
