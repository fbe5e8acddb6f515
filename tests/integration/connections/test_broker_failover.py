"""After a failover of Redis a connection may lead to a replica: processes leave it for where the address leads now."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
import redis

from orcheo_dispatch.ops.sandbox.child import free_port
from orcheo_dispatch.ops.sandbox.embedded import EmbeddedRedis
from tests.support.database.databases import Database
from tests.support.database.runs import all_are, insert_runs
from tests.support.processes.processes import Stack, until
from tests.support.servers.servers import scratch


class Address:
    """A virtual IP: new connections lead to `target`, those that are open stay where they are."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = free_port()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.target))
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=_copy, args=(source, sink), daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while received := source.recv(65_536):
            sink.sendall(received)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def pair() -> Iterator[tuple[EmbeddedRedis, EmbeddedRedis]]:
    with scratch() as one, scratch() as other, EmbeddedRedis(one) as first, EmbeddedRedis(other) as second:
        yield first, second


def test_processes_leave_a_server_that_became_a_replica(
    database: Database, pair: tuple[EmbeddedRedis, EmbeddedRedis], tmp_path: Path
) -> None:
    first, second = pair
    with Address(first.port) as address, ExitStack() as running:
        stack = Stack(database, f"redis://127.0.0.1:{address.port}/0", tmp_path / "side-effects")
        worker, dispatcher, beat = (
            running.enter_context(stack.running(kind, ORCHEO_DISPATCH_LEASE="2"))
            for kind in ("worker", "dispatcher", "beat")
        )
        insert_runs(database, 3)
        until(lambda: all_are(database, "succeeded"), what="runs succeed before the failover")
        address.target = second.port
        with redis.Redis.from_url(first.url) as old, redis.Redis.from_url(second.url) as new:
            old.replicaof("127.0.0.1", second.port)
            insert_runs(database, 5)
            until(lambda: all_are(database, "succeeded"), what="runs succeed after the failover")
            ticks = "cmdstat_lpush"
            until(lambda: new.info("commandstats").get(ticks, {}).get("calls", 0) > 20, what="Beat ticks the new one")
    assert worker.exit_code is not None
    for process in (worker, dispatcher, beat):
        assert "Traceback" not in process.log
