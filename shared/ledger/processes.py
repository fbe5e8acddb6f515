"""Record that a process is alive: each of our processes updates one row in the ledger regularly."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from sqlalchemy import Engine

from orcheo_dispatch import __version__
from orcheo_dispatch.shared.database.connections import in_transaction
from orcheo_dispatch.shared.ledger.model import ProcessKind
from orcheo_dispatch.shared.ledger.statements.processes import (
    CONSUMED,
    GONE,
    PRUNE_PROCESSES,
    SEEN,
    TICKED_ELSEWHERE,
    WORKERS,
)

PROCESS_RETENTION_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class Process:
    """One start of one process. The id is new at each start, because a host and pid may be used again."""

    kind: ProcessKind
    concurrency: int = 1
    id: UUID = field(default_factory=uuid4)
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    triggers: tuple[str, ...] | None = None
    """For a dispatcher: the labels of the runs that it claims, so that views can distinguish our runs from others."""

    queues: tuple[str, ...] | None = None
    """For a worker: the queues whose runs it executes."""

    def seen(self, engine: Engine, *, running: int = 0, lock_timeout: float | None = None) -> None:
        """Record that this process is alive and how many runs it executes. Raises `DatabaseError`."""
        parameters = {
            "id": str(self.id),
            "kind": self.kind,
            "host": self.host,
            "pid": self.pid,
            "version": __version__,
            "concurrency": self.concurrency,
            "running": running,
            "triggers": None if self.triggers is None else list(self.triggers),
            "queues": None if self.queues is None else list(self.queues),
        }
        in_transaction(engine, lambda connection: connection.execute(SEEN, parameters), lock_timeout=lock_timeout)

    def gone(self, engine: Engine) -> None:
        """Delete the row: this process ends in an orderly way. Raises `DatabaseError`."""
        in_transaction(engine, lambda connection: connection.execute(GONE, {"id": str(self.id)}))


def ticked_elsewhere(engine: Engine, dispatcher: Process, *, seconds: float, lock_timeout: float | None = None) -> bool:
    """Return whether Beat ticked and another dispatcher was alive within `seconds`. Raises `DatabaseError`."""
    parameters = {"id": str(dispatcher.id), "seconds": seconds}
    return in_transaction(
        engine,
        lambda connection: bool(connection.scalar(TICKED_ELSEWHERE, parameters)),
        lock_timeout=lock_timeout,
    )


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers that are alive."""

    alive: int = 0
    smallest: int = 0
    """Number of runs that the smallest of them executes at a time."""
    ids: frozenset[str] = frozenset()


def live_workers(engine: Engine, *, lease: float, lock_timeout: float | None = None) -> Workers:
    """Return the workers that were seen within `lease` seconds. Raises `DatabaseError`."""
    row = in_transaction(
        engine,
        lambda connection: connection.execute(WORKERS, {"lease": lease}).one(),
        lock_timeout=lock_timeout,
    )
    return Workers(row.alive, row.smallest, frozenset(row.ids))


def consumed_queues(engine: Engine, *, lock_timeout: float | None = None) -> frozenset[str]:
    """Return the queues that live workers consume. Raises `DatabaseError`."""
    rows = in_transaction(engine, lambda connection: connection.scalars(CONSUMED).all(), lock_timeout=lock_timeout)
    return frozenset(rows)


def prune_processes(engine: Engine) -> None:
    """Delete the rows of processes that have not been seen for a day. Raises `DatabaseError`."""
    parameters = {"retention": PROCESS_RETENTION_SECONDS}
    in_transaction(engine, lambda connection: connection.execute(PRUNE_PROCESSES, parameters))
