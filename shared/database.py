"""Connections to Postgres, and the one place where a driver's error becomes ours."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg
from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from shared.errors import DatabaseError, RowLockedError, SchemaError
from shared.redaction import error_line
from shared.settings import Settings

CONNECT_TIMEOUT_SECONDS = 5
POOL_TIMEOUT_SECONDS = 30.0
STATEMENT_TIMEOUT_MILLISECONDS = 30_000
_TCP_DEAD_MILLISECONDS = 15_000
# Postgres is there and will never take this value: waiting for it to come back would be in vain.
_POOLED = (psycopg.errors.InvalidSqlStatementName, psycopg.errors.DuplicatePreparedStatement)
_PREPARE_AFTER = 3
"""Executions of a statement on a connection before it is prepared. Ours take a millisecond or two to plan each time."""
_REFUSALS = (psycopg.DataError, psycopg.errors.ProgramLimitExceeded)


# In one message, so that a transaction costs one round trip more than its statements, and its end.
# SET LOCAL, not a startup option: a transaction pooler refuses those.
# What is prepared is planned once: that its plans are good for any parameters is tested (tests/plans). Left to itself
# Postgres plans those with arrays each time, in more time than they then take. JIT would compile for longer still.
# A bitmap scan collects all entries of an index that match and marks none as dead; in tables like these there are, from
# vacuum to vacuum, dozens of dead entries for a live one (133 thousand for 4 thousand, seen in a busy claim).
_BEGIN = "; ".join(
    (
        "BEGIN",
        f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MILLISECONDS}",
        "SET LOCAL plan_cache_mode = force_generic_plan",
        "SET LOCAL jit = off",
        "SET LOCAL enable_bitmapscan = off",
    )
)


def connect(dsn: str, *, role: str, autocommit: bool = False) -> psycopg.Connection[tuple[object, ...]]:
    """Return a connection that prepares nothing; its death is noticed within 15 s, whatever became of its peer."""
    return psycopg.connect(
        dsn,
        autocommit=autocommit,
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
    """Return an engine of at most `connections` connections, whose transactions have a statement timeout.

    `role` is the `application_name` that `pg_stat_activity` shows. A statement that comes again is prepared on the
    server, unless a transaction pooler (PgBouncer) stands between. One that `migrates` has no timeout, and may work
    outside of transactions.
    """
    dsn = settings.postgres_dsn.get_secret_value()
    pooler_found = threading.Event()

    def connect_and_prepare() -> psycopg.Connection[tuple[object, ...]]:
        # The driver's own BEGIN would be a round trip of its own: ours is sent by the event below.
        connection = connect(dsn, role=role, autocommit=not migrates)
        if not migrates and not pooler_found.is_set():
            if through_pooler(connection):
                pooler_found.set()
            else:
                connection.prepare_threshold = _PREPARE_AFTER
        return connection

    def leave_connection(context: ExceptionContext) -> None:
        error = context.original_exception
        if isinstance(error, _POOLED):
            # A pooler that we took for a server: another client's statements are on the connection, and ours are not.
            pooler_found.set()
        # To a server that has become read-only: after a failover the DSN leads to another one.
        if isinstance(error, (*_POOLED, psycopg.errors.ReadOnlySqlTransaction)):
            context.is_disconnect = True

    engine = create_engine(
        "postgresql+psycopg://",
        creator=connect_and_prepare,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        hide_parameters=True,
    )
    if not migrates:
        event.listen(engine, "begin", _begin)
    event.listen(engine, "handle_error", leave_connection)
    return engine


def through_pooler(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    """Return whether a pooler such as PgBouncer stands between: it invents the process id that it gives to a client."""
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


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(_BEGIN)


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
    Raises `DatabaseError` (`SchemaError`, `RowLockedError`); SQLAlchemy's `DBAPIError` only where Postgres refuses a
    value for good.
    """
    with database_errors(), ExitStack() as stack:
        connection = _begun(engine, stack)
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
    """Begin a transaction that ends with the stack; once more where the connection had died in the pool.

    That is found out by BEGIN itself, before anything has happened, rather than by asking before each one. The pool
    drops all connections that are older then.
    """
    try:
        return stack.enter_context(engine.begin())
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        return stack.enter_context(engine.begin())


@contextmanager
def database_errors() -> Iterator[None]:
    """Translate the driver's errors into ours: one line, no parameters, no password."""
    try:
        yield
    except psycopg.OperationalError as error:
        raise DatabaseError(_first_line(error)) from error
    except ProgrammingError as error:
        if isinstance(error.orig, _POOLED):
            raise DatabaseError(_first_line(error)) from error
        raise SchemaError(_first_line(error)) from error
    except PoolTimeoutError as error:
        raise DatabaseError(f"no free connection within {POOL_TIMEOUT_SECONDS:g} s") from error
    except DBAPIError as error:
        if isinstance(error.orig, _REFUSALS):
            raise
        if isinstance(error.orig, psycopg.errors.LockNotAvailable):
            raise RowLockedError(_first_line(error)) from error
        raise DatabaseError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return error_line(getattr(error, "orig", None) or error)
