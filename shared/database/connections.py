"""Connections to Postgres, and the one place where errors of the driver are translated."""

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
from orcheo_dispatch.shared.database.session import STATEMENT_TIMEOUT_MILLISECONDS
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

CONNECT_TIMEOUT_SECONDS = 5
POOL_TIMEOUT_SECONDS = 30.0
MIGRATION_LOCK_MILLISECONDS = 300
"""How long a change of the schema waits for a lock; see `shared/database/ddl.py`."""
_TCP_DEAD_MILLISECONDS = 15_000
_PREPARE_AFTER = 3
"""Executions of a statement on a connection before it is prepared. Ours take a millisecond or two to plan each time."""
_BEGIN = "begin"
"""What each connection's `info` keeps: the message that begins its transactions."""
KEEPS_CONNECTION = "keeps_connection"
"""The option of a connection that is kept whatever a statement raises: one behind a savepoint, say."""
_CONFLICT_ATTEMPTS = 5


def connect(dsn: str, *, role: str) -> psycopg.Connection[tuple[object, ...]]:
    """Return a connection in autocommit mode that prepares nothing.

    Its death is noticed within 15 s, whatever became of its peer.
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
    """Return an engine of at most `connections` connections, whose transactions rely on no default of the role.

    `role` is the `application_name` that `pg_stat_activity` shows. A statement that comes again is prepared on the
    server, unless through a transaction pooler (PgBouncer). One that `migrates` has no statement timeout, may
    work outside of transactions, and raises `SettingsError` if the DSN leads to a pooler.
    """
    dsn = settings.postgres_dsn.get_secret_value()
    pooler_found = threading.Event()

    def connect_and_prepare() -> psycopg.Connection[tuple[object, ...]]:
        if migrates:
            return _connect_to_migrate(dsn, role=role)
        # No BEGIN by the driver, which would cost a round trip: the event below sends ours.
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
            # A pooler that we took for a server: another client's statements are on the connection, and ours are not.
            pooler_found.set()
        # Connected to a server that has become read-only: after a failover the DSN leads to another one.
        if failure in (Failure.POOLER, Failure.READ_ONLY):
            context.is_disconnect = True

    engine = create_engine(
        "postgresql+psycopg://",
        creator=connect_and_prepare,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        hide_parameters=True,
        # Looked up in the catalog by each connection, and used by no statement of ours.
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
            "ORCHEO_POSTGRES_DSN leads through a pooler: migrate holds a lock of a session, name the server itself"
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
    """Have a connection that is a session of its own rely on no default of the role; see `shared/database/session.py`.

    `instead` has other values for some of the settings.
    """
    connection.execute(session.set_session(connection.info.server_version, **instead).encode())


def through_pooler(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    """Return whether there is a pooler such as PgBouncer, which invents the process id that its client sees."""
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    return row != (connection.info.backend_pid,)


@contextmanager
def open_engine(settings: Settings, *, role: str, connections: int = 1, migrates: bool = False) -> Iterator[Engine]:
    """Yield an engine as `make_engine` makes it, for as long as a command lasts; its connections are closed then."""
    engine = make_engine(settings, role=role, connections=connections, migrates=migrates)
    try:
        yield engine
    finally:
        engine.dispose()


def _note_begin(driver: psycopg.Connection[Any], record: Any) -> None:
    """Make the message that begins the transactions of a new connection."""
    row = driver.execute("SELECT current_setting('synchronous_commit') = 'off'").fetchone()
    record.info[_BEGIN] = session.begin(driver.info.server_version, durable=row == (True,))


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.info[_BEGIN])


@contextmanager
def transaction(
    engine: Engine,
    *,
    timeout_milliseconds: int = STATEMENT_TIMEOUT_MILLISECONDS,
    lock_timeout: float | None = None,
    read_only: bool = False,
    many_rows: bool = False,
) -> Iterator[Connection]:
    """Run a block in one short transaction; each of its statements is ended after the timeout.

    None of them waits for a lock for longer than `lock_timeout` seconds, where that is given. With `many_rows` they are
    planned for the arrays that they get: a plan for any would join long ones row by row.
    Raises `DatabaseError`, or what is below it where the cause is known.
    """
    with database_errors() as progress, ExitStack() as stack:
        connection = _begun(engine, stack)
        progress.begun = True
        wanted = []
        if timeout_milliseconds != STATEMENT_TIMEOUT_MILLISECONDS:
            wanted.append(f"SET LOCAL statement_timeout = {timeout_milliseconds}")
        if lock_timeout is not None:
            wanted.append(f"SET LOCAL lock_timeout = {int(lock_timeout * 1000)}")
        if read_only:
            wanted.append("SET TRANSACTION READ ONLY")
        if many_rows:
            wanted.append("SET LOCAL plan_cache_mode = force_custom_plan")
        if wanted:
            connection.exec_driver_sql("; ".join(wanted))
        yield connection


def _begun(engine: Engine, stack: ExitStack) -> Connection:
    """Begin a transaction that ends with the stack; retry once if the pooled connection was dead.

    That is found out by BEGIN itself, before anything has happened, rather than by asking before each one. The pool
    drops all connections that are older then.
    """
    try:
        return stack.enter_context(engine.begin())
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        return stack.enter_context(engine.begin())


def in_transaction[T](engine: Engine, work: Callable[[Connection], T], **options: Any) -> T:
    """Return what `work` makes of one transaction, done again where another one's made Postgres roll it back.

    `work` changes nothing but the database. `options` and errors are those of `transaction`.
    """

    def once() -> T:
        with transaction(engine, **options) as connection:
            return work(connection)

    retrying = Retrying(
        retry=retry_if_exception_type(ConflictError),
        stop=stop_after_attempt(_CONFLICT_ATTEMPTS),
        # Full jitter: the loser of a deadlock must not meet the winner at the same time again.
        wait=wait_random_exponential(multiplier=0.02, max=0.5),
        reraise=True,
    )
    return retrying(once)


@dataclass(slots=True)
class _Progress:
    """How far a block of statements got before an error."""

    begun: bool = False
    """A transaction was begun: if the connection breaks, it may have been committed."""


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
