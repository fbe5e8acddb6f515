"""Connections to Postgres, and the one place where the driver's errors are translated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from orcheo_dispatch.shared.database import session
from orcheo_dispatch.shared.database.session import CONNECT_TIMEOUT_SECONDS, STATEMENT_TIMEOUT_MILLISECONDS
from orcheo_dispatch.shared.database.sqlstate import STATEMENT_COMPLETION_UNKNOWN, Failure, answered, failure_of
from orcheo_dispatch.shared.errors import (
    ConflictError,
    DatabaseError,
    RefusedError,
    RowLockedError,
    SchemaError,
    SettingsError,
)
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.text.redaction import error_line

POOL_TIMEOUT_SECONDS = 30.0
MIGRATION_LOCK_MILLISECONDS = 300
"""Maximum time that a change of the schema waits for a lock; see `shared/database/ddl.py`."""
_TCP_DEAD_MILLISECONDS = 15_000
_PREPARE_AFTER = 3
"""Executions of a statement on a connection before it is prepared. Planning ours takes one or two milliseconds."""
_BEGIN = "begin"
"""Key in each connection's `info` of the statements that begin its transactions."""
_CHOSEN = "chosen_settings"
"""Execution option: statements that follow those in the same message, for one transaction."""
KEEPS_CONNECTION = "keeps_connection"
"""Execution option that keeps a connection open whatever a statement raises, for example behind a savepoint."""
_CONFLICT_ATTEMPTS = 5


def connect(dsn: str, *, role: str) -> psycopg.Connection[tuple[object, ...]]:
    """Return a connection in autocommit mode that prepares no statements.

    A dead connection is detected within 15 s, whatever happened to its peer.
    """
    return psycopg.connect(
        dsn,
        autocommit=True,
        application_name=f"orcheo-dispatch {role}",
        client_encoding="utf8",
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        keepalives=1,
        keepalives_idle=5,
        keepalives_interval=2,
        keepalives_count=3,
        tcp_user_timeout=_TCP_DEAD_MILLISECONDS,
        prepare_threshold=None,
    )


def make_engine(settings: Settings, *, role: str, connections: int, migrates: bool = False) -> Engine:
    """Return an engine with at most `connections` connections, whose transactions do not rely on defaults of the role.

    `role` is part of the `application_name` that `pg_stat_activity` shows. Repeated statements are prepared on the
    server, unless the connection goes through a transaction pooler (PgBouncer). With `migrates`, the engine has no
    statement timeout, may work outside of transactions, and raises `SettingsError` if there is a pooler.
    """
    dsn = settings.postgres_dsn.get_secret_value()
    pooler_found = threading.Event()

    def connect_and_prepare() -> psycopg.Connection[tuple[object, ...]]:
        if migrates:
            return _connect_to_migrate(dsn, role=role)
        # The driver sends no BEGIN, which would be a separate round trip: the event below sends ours.
        connection = connect(dsn, role=role)
        if not pooler_found.is_set():
            if through_pooler(connection):
                pooler_found.set()
            else:
                connection.prepare_threshold = _PREPARE_AFTER
        return connection

    def leave_connection(context: ExceptionContext) -> None:
        if context.connection is not None and context.connection.get_execution_options().get(KEEPS_CONNECTION):
            return
        failure = failure_of(context.original_exception)
        if failure is Failure.POOLER:
            # An undetected pooler: the connection has the prepared statements of another client instead of ours.
            pooler_found.set()
        # A server that has become read-only: after a failover the DSN leads to another one.
        if failure in (Failure.POOLER, Failure.READ_ONLY):
            context.is_disconnect = True

    engine = create_engine(
        "postgresql+psycopg://",
        creator=connect_and_prepare,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        hide_parameters=True,
        # Each connection would look it up in the catalog, and none of our statements uses it.
        use_native_hstore=False,
    )
    if not migrates:
        event.listen(engine, "connect", _note_begin)
        event.listen(engine, "begin", _begin)
    event.listen(engine, "handle_error", leave_connection)
    return engine


def _connect_to_migrate(dsn: str, *, role: str) -> psycopg.Connection[tuple[object, ...]]:
    connection = connect(dsn, role=role)
    if through_pooler(connection):
        connection.close()
        raise SettingsError(
            "ORCHEO_POSTGRES_DSN leads through a pooler: migrate needs a session lock, specify the server itself"
        )
    prepare_session(
        connection,
        statement_timeout=0,
        lock_timeout=MIGRATION_LOCK_MILLISECONDS,
        idle_in_transaction_session_timeout=0,
    )
    connection.autocommit = False
    return connection


def prepare_session(connection: psycopg.Connection[Any], **instead: int) -> None:
    """Set what a connection that is a session of its own relies on; see `shared/database/session.py`.

    `instead` overrides the values of some settings.
    """
    connection.execute(session.set_session(connection.info.server_version, **instead).encode())


def through_pooler(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    """Return whether a pooler such as PgBouncer is in between, which gives its client an invented process ID."""
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    return row != (connection.info.backend_pid,)


@contextmanager
def open_engine(settings: Settings, *, role: str, connections: int = 1, migrates: bool = False) -> Iterator[Engine]:
    """Yield an engine from `make_engine` for the duration of a command, and close its connections afterwards."""
    engine = make_engine(settings, role=role, connections=connections, migrates=migrates)
    try:
        yield engine
    finally:
        engine.dispose()


def _note_begin(driver: psycopg.Connection[Any], record: Any) -> None:
    """Store the statements that begin the transactions of a new connection."""
    row = driver.execute("SELECT current_setting('synchronous_commit') = 'off'").fetchone()
    record.info[_BEGIN] = session.begin(driver.info.server_version, durable=row == (True,))


def _begin(connection: Connection) -> None:
    chosen = connection.get_execution_options().get(_CHOSEN, ())
    connection.exec_driver_sql("; ".join((connection.info[_BEGIN], *chosen)))


@contextmanager
def transaction(
    engine: Engine,
    *,
    timeout_milliseconds: int = STATEMENT_TIMEOUT_MILLISECONDS,
    lock_timeout: float | None = None,
    read_only: bool = False,
    many_rows: bool = False,
) -> Iterator[Connection]:
    """Run a block in one short transaction; each of its statements is cancelled after the timeout.

    If `lock_timeout` (seconds) is given, no statement waits longer than that for a lock. With `many_rows`, statements
    are planned for the arrays that they get: a generic plan would join long arrays row by row.
    Raises `DatabaseError`, or one of its subclasses if the cause is known.
    """
    chosen = []
    if timeout_milliseconds != STATEMENT_TIMEOUT_MILLISECONDS:
        chosen.append(f"SET LOCAL statement_timeout = {timeout_milliseconds}")
    if lock_timeout is not None:
        chosen.append(f"SET LOCAL lock_timeout = {int(lock_timeout * 1000)}")
    if read_only:
        chosen.append("SET TRANSACTION READ ONLY")
    if many_rows:
        chosen.append("SET LOCAL plan_cache_mode = force_custom_plan")
    with database_errors() as progress, ExitStack() as stack:
        connection = _begun(engine, chosen, stack)
        progress.begun = True
        yield connection


def _begun(engine: Engine, chosen: list[str], stack: ExitStack) -> Connection:
    """Begin a transaction that ends with the stack; try once more if the connection had died in the pool.

    BEGIN itself detects this, before anything has happened, so no ping is needed before each transaction. The pool then
    drops all older connections.
    """
    try:
        return stack.enter_context(_beginning(engine, chosen))
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        return stack.enter_context(_beginning(engine, chosen))


@contextmanager
def _beginning(engine: Engine, chosen: list[str]) -> Iterator[Connection]:
    with engine.connect() as connection, connection.execution_options(**{_CHOSEN: chosen}).begin():
        yield connection


def in_transaction[T](engine: Engine, work: Callable[[Connection], T], **options: Any) -> T:
    """Return the result of `work` in one transaction; retry if Postgres rolled it back because of another transaction.

    `work` must not change anything except the database. `options` and errors are those of `transaction`.
    """

    def once() -> T:
        with transaction(engine, **options) as connection:
            return work(connection)

    retrying = Retrying(
        retry=retry_if_exception_type(ConflictError),
        stop=stop_after_attempt(_CONFLICT_ATTEMPTS),
        # Full jitter: the loser of a deadlock must not meet the winner again at the same moment.
        wait=wait_random_exponential(multiplier=0.02, max=0.5),
        reraise=True,
    )
    return retrying(once)


@dataclass(slots=True)
class _Progress:
    """How far a block of statements got before an error."""

    begun: bool = False
    """Whether a transaction was begun: if the connection breaks, it may have been committed."""


@contextmanager
def database_errors() -> Iterator[_Progress]:
    """Translate the driver's errors into ours: one line, no parameters, no password."""
    progress = _Progress()
    try:
        yield progress
    except PoolTimeoutError as error:
        raise DatabaseError(f"no free connection within {POOL_TIMEOUT_SECONDS:g} s") from error
    except (DBAPIError, psycopg.Error) as error:
        failure, cause = failure_of(error), getattr(error, "orig", None) or error
        sqlstate, alive = getattr(cause, "sqlstate", None), answered(error)
        raise _ERRORS.get(failure, DatabaseError)(
            _first_line(error),
            sqlstate=sqlstate,
            cause=type(cause).__name__,
            answered=alive,
            in_doubt=progress.begun and (not alive or sqlstate == STATEMENT_COMPLETION_UNKNOWN),
        ) from error


_ERRORS: dict[Failure, type[DatabaseError]] = {
    Failure.CONFLICT: ConflictError,
    Failure.LOCKED: RowLockedError,
    Failure.SCHEMA: SchemaError,
    Failure.REFUSED: RefusedError,
}


def _first_line(error: Exception) -> str:
    return error_line(getattr(error, "orig", None) or error)
