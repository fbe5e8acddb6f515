"""Orcheo's repository on one connection, so that a trigger is marked in the transaction that inserts its run."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row

from orcheo_dispatch.shared.database import session
from orcheo_dispatch.worker.books.postgres import prepare_session
from orcheo_dispatch.worker.orcheo.compat import CronTriggerState, PostgresWorkflowRepository

type Connection = AsyncConnection[DictRow]

_LOCK_MILLISECONDS, _STATEMENT_MILLISECONDS = 1000, 10_000

_MARK = """
UPDATE cron_triggers SET last_dispatched_at = %(scheduled_for)s
 WHERE workflow_id = %(workflow_id)s AND last_dispatched_at IS NOT DISTINCT FROM %(read)s
RETURNING now() AS now
"""

_INSERTS_RUN = "INSERT INTO workflow_runs"


class TakenError(Exception):
    """Another process has dispatched this trigger since it was read."""


@dataclass(frozen=True, slots=True)
class Due:
    """A trigger that is due."""

    workflow_id: str
    state: CronTriggerState
    scheduled_for: datetime
    read: datetime | None
    """The time of its last dispatch when it was read."""


class CronRepository(PostgresWorkflowRepository):  # type: ignore[misc]
    """Creates runs with Orcheo's own code. It opens no pool, creates no tables and remembers no run."""

    def __init__(self, dsn: str, *, credential_service: Any) -> None:
        super().__init__(dsn, credential_service=credential_service)
        self.dsn = dsn
        self.connection: Connection | None = None
        self._due: Due | None = None
        self._trigger_layer = _NoTrack()

    @contextmanager
    def marking(self, due: Due) -> Iterator[None]:
        """Mark `due` as dispatched in the transaction of each run that is created within the block.

        Creating the run raises `TakenError` if another process has marked the trigger since it was read.
        """
        self._due = due
        try:
            yield
        finally:
            self._due = None

    async def _ensure_initialized(self) -> None:
        """Do nothing: the tables exist, and Orcheo's own method would read all failed runs."""

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        assert self.connection is not None
        async with begun(self.connection):
            yield self.connection if self._due is None else _MarkingConnection(self.connection, self._mark)

    async def _mark(self, connection: Connection) -> datetime:
        assert self._due is not None
        parameters = {
            "scheduled_for": self._due.scheduled_for,
            "workflow_id": self._due.workflow_id,
            "read": self._due.read,
        }
        row = await (await connection.execute(_MARK, parameters)).fetchone()
        if row is None:
            raise TakenError
        now: datetime = row["now"]
        return now


class _MarkingConnection:
    """A connection that marks a trigger before it inserts the trigger's run, and stamps the run with Postgres' time."""

    def __init__(self, connection: Connection, mark: Callable[[Connection], Awaitable[datetime]]) -> None:
        self._connection = connection
        self._mark = mark

    async def execute(self, statement: str, parameters: Any = None) -> Any:
        """Execute a statement of Orcheo's."""
        if _INSERTS_RUN not in statement:
            return await self._connection.execute(cast("Any", statement), parameters)
        now = await self._mark(self._connection)
        return await self._connection.execute(cast("Any", statement), [_at(now, each) for each in parameters])


def _at(now: datetime, parameter: Any) -> Any:
    """Return a parameter of a new run's INSERT with Postgres' time, since Orcheo uses the host's clock."""
    if isinstance(parameter, datetime):
        return now
    if not isinstance(parameter, str) or not parameter.startswith("{"):
        return parameter
    payload = json.loads(parameter)
    shown = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    audit = [{**event, "at": shown} for event in payload["audit_log"]]
    return json.dumps({**payload, "created_at": shown, "updated_at": shown, "audit_log": audit})


class _NoTrack:
    """Replaces Orcheo's trigger layer: overlapping runs are read from the database before each dispatch."""

    def track_run(self, workflow_id: UUID, run_id: UUID) -> None: ...
    def register_cron_run(self, run_id: UUID) -> None: ...


@asynccontextmanager
async def begun(connection: Connection, **instead: int) -> AsyncIterator[None]:
    """Run a block in a transaction with our settings instead of the role's defaults; `instead` overrides single ones.

    They are set with SET LOCAL, since there may be a transaction pooler.
    """
    own = {"lock_timeout": _LOCK_MILLISECONDS, "statement_timeout": _STATEMENT_MILLISECONDS, **instead}
    statements = [
        "SET TRANSACTION ISOLATION LEVEL READ COMMITTED, NOT DEFERRABLE",
        session.set_local(connection.info.server_version),
        *(f"SET LOCAL {name} = {value}" for name, value in own.items()),
    ]
    async with connection.transaction():
        await connection.execute("; ".join(statements).encode())
        yield


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Connection]:
    """Yield an autocommit connection that prepares no statements; a dead one is detected within 15 s."""
    connection = await AsyncConnection.connect(
        dsn,
        autocommit=True,
        row_factory=dict_row,
        application_name="orcheo-dispatch cron",
        client_encoding="utf8",
        connect_timeout=session.CONNECT_TIMEOUT_SECONDS,
        keepalives=1,
        keepalives_idle=5,
        keepalives_interval=2,
        keepalives_count=3,
        tcp_user_timeout=15_000,
        prepare_threshold=None,
    )
    try:
        await prepare_session(connection)
        yield connection
    finally:
        await connection.close()
