"""Carries out the faults of a plan, on one thread, and notes when each really began and ended."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import redis

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres
from tests.faults.full_disk import FillableRedis
from tests.faults.links import Links, Server
from tests.faults.plan import Fault, Kind
from tests.faults.supervisor import RESTART_SECONDS, Supervisor

_DELAY_SECONDS = 0.25
_LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault as it was; `pid` is the process that it struck, if it struck one. Times are of the machine's clock."""

    kind: Kind
    began_at: float
    ended_at: float
    pid: int | None


class Injector:
    """Knows how to do each kind of fault, and how to undo it."""

    def __init__(self, supervisor: Supervisor, links: Links, postgres: EmbeddedPostgres, broker: FillableRedis) -> None:
        self.injected: list[Injected] = []
        self._supervisor = supervisor
        self._links = links
        self._postgres = postgres
        self._broker = broker
        self._begun: dict[Fault, tuple[float, int | None]] = {}

    def run(self, faults: tuple[Fault, ...], began: float, stopping: threading.Event) -> None:
        """Do all of it; `began` is `time.monotonic()` of the start."""
        steps: list[tuple[float, int, Fault, Callable[[Fault], None]]] = []
        for number, fault in enumerate(faults):
            steps.append((fault.at, 2 * number, fault, self._begin))
            steps.append((fault.ends_at, 2 * number + 1, fault, self._end))
        for at, _, fault, step in sorted(steps, key=lambda each: each[:2]):
            if stopping.wait(max(0.0, began + at - time.monotonic())):
                return
            step(fault)

    def _begin(self, fault: Fault) -> None:
        at, pid = time.time(), None
        match fault.kind:
            case Kind.KILL_WORKER | Kind.KILL_DISPATCHER | Kind.KILL_BEAT:
                pid = self._send(fault, signal.SIGKILL)
            case Kind.PAUSE_WORKER | Kind.PAUSE_DISPATCHER | Kind.PAUSE_BEAT:
                pid = self._send(fault, signal.SIGSTOP)
            case Kind.DRAIN_WORKER:
                pid = self._send(fault, signal.SIGTERM)
            case Kind.FLUSH:
                with redis.Redis.from_url(self._broker.url) as client:
                    client.flushall()
            case Kind.REDIS_RESTART:
                self._broker.kill()
            case Kind.REDIS_FULL:
                self._broker.fill_disk()
            case Kind.POSTGRES_RESTART:
                self._postgres.kill()
            case Kind.CUT_OFF_WORKER:
                self._links.hold(Server.POSTGRES, f"worker-{fault.target}")
            case _:
                self._trouble(fault)
        self._begun[fault] = at, pid

    def _trouble(self, fault: Fault) -> None:
        server = _SERVERS[fault.kind]
        match fault.kind:
            case Kind.REDIS_DROP | Kind.POSTGRES_DROP | Kind.SLOTS_DROP:
                self._links.drop(server)
            case Kind.REDIS_DELAY | Kind.POSTGRES_DELAY:
                self._links.delay(server, _DELAY_SECONDS)
            case Kind.REDIS_STALL | Kind.POSTGRES_STALL | Kind.SLOTS_STALL:
                self._links.hold(server)
            case Kind.REDIS_HALF_CLOSE | Kind.POSTGRES_HALF_CLOSE:
                self._links.half_close(server)

    def _end(self, fault: Fault) -> None:
        at, pid = self._begun.pop(fault)
        match fault.kind:
            case Kind.PAUSE_WORKER | Kind.PAUSE_DISPATCHER | Kind.PAUSE_BEAT:
                self._send(fault, signal.SIGCONT)
            case Kind.REDIS_RESTART:
                self._broker.start()
            case Kind.REDIS_FULL:
                self._broker.empty_disk()
            case Kind.POSTGRES_RESTART:
                self._postgres.start()
            case kind if kind in _SERVERS:
                self._links.heal(_SERVERS[kind])
        if pid is not None or fault.kind not in _AT_PROCESSES:
            self.injected.append(Injected(fault.kind, at, time.time(), pid))

    def _send(self, fault: Fault, number: signal.Signals) -> int | None:
        """Send a signal; where the process is just being started again, to the one that comes."""
        name = f"{_AT_PROCESSES[fault.kind]}-{fault.target}"
        deadline = time.monotonic() + 2 * RESTART_SECONDS
        while self._supervisor.knows(name):
            pid = self._supervisor.send(name, number)
            if pid is not None or time.monotonic() > deadline:
                return pid
            time.sleep(_LOOK_SECONDS)
        return None


_AT_PROCESSES = {
    Kind.KILL_WORKER: "worker",
    Kind.PAUSE_WORKER: "worker",
    Kind.DRAIN_WORKER: "worker",
    Kind.KILL_DISPATCHER: "dispatcher",
    Kind.PAUSE_DISPATCHER: "dispatcher",
    Kind.KILL_BEAT: "beat",
    Kind.PAUSE_BEAT: "beat",
}
_SERVERS = {
    **dict.fromkeys((Kind.REDIS_DROP, Kind.REDIS_DELAY, Kind.REDIS_STALL, Kind.REDIS_HALF_CLOSE), Server.REDIS),
    **dict.fromkeys(
        (Kind.POSTGRES_DROP, Kind.POSTGRES_DELAY, Kind.POSTGRES_STALL, Kind.POSTGRES_HALF_CLOSE, Kind.CUT_OFF_WORKER),
        Server.POSTGRES,
    ),
    **dict.fromkeys((Kind.SLOTS_DROP, Kind.SLOTS_STALL), Server.SLOTS),
}
