"""Change many rows so that a row that Postgres refuses does not block the others.

One statement makes the change for all rows. If Postgres refuses it, the change is repeated in one transaction for
smaller and smaller parts, each behind a savepoint, until the refused rows are isolated. These are remembered
(`shared/database/refused.py`), and the change of all others is committed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from orcheo_dispatch.shared.database.connections import KEEPS_CONNECTION, in_transaction
from orcheo_dispatch.shared.database.refused import Refused, raised_by_function
from orcheo_dispatch.shared.database.sqlstate import Failure, failure_of
from orcheo_dispatch.shared.errors import DatabaseError

_ATTEMPTS = 256
"""Maximum number of attempts: 100 rows that are all refused take 199. The remaining rows are left to the next call."""
_SECONDS = 5.0
"""Time after which no other attempt begins."""
_STATEMENT_TIMEOUT_MILLISECONDS = 2000
_LOCK_TIMEOUT_SECONDS = 0.2
# The server is the cause of these, unless a function raised them or other rows succeed.
_OF_THE_SERVER = (Failure.OUTAGE, Failure.READ_ONLY, Failure.POOLER)

type Rows = Sequence[Any]
type Act = Callable[[Connection, Sequence[str]], Rows]
"""Changes the rows of these runs and returns what was changed; with no runs it changes nothing."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of many rows that chooses them itself."""

    step: str
    """The name under which refusals are remembered and logged."""
    at_once: Callable[[Connection, list[str]], Rows]
    """Makes the change for all rows except those of the given runs, and returns what was changed."""
    choose: Callable[[Connection, list[str]], Sequence[str]]
    """Locks the rows that `at_once` would change, with the same exceptions, and returns their runs."""
    act: Act


def sift(
    engine: Engine, refused: Refused, change: Change, *, lock_timeout: float | None = None, many_rows: bool = False
) -> Rows:
    """Make a change for all rows except those that Postgres refuses; return what was changed.

    Raises `DatabaseError` if the cause is not a row: the server is unavailable, a table is locked, or Postgres refuses
    the statement itself.
    """
    skipped = refused.skipped(change.step)
    try:
        return in_transaction(
            engine,
            lambda connection: change.at_once(connection, skipped),
            lock_timeout=lock_timeout,
            many_rows=many_rows,
        )
    except DatabaseError as error:
        if not error.answered:
            raise
    sieve = in_transaction(
        engine,
        lambda connection: sieved(connection, change.choose, change.act, skipped),
        timeout_milliseconds=_STATEMENT_TIMEOUT_MILLISECONDS,
        lock_timeout=_LOCK_TIMEOUT_SECONDS,
    )
    for run_id, refusal in sieve.refused.items():
        refused.note(change.step, run_id, refusal)
    return sieve.changed


@dataclass(slots=True)
class Sieve:
    """What was changed, and which runs were refused; the others were left to a later call."""

    changed: list[Any] = field(default_factory=list)
    succeeded: bool = False
    refused: dict[str, DBAPIError] = field(default_factory=dict)


def sieved(
    connection: Connection,
    choose: Callable[[Connection, list[str]], Sequence[str]],
    act: Act,
    skipped: list[str] | None = None,
) -> Sieve:
    """Act on the chosen runs, within the transaction of the connection, except on those that Postgres refuses.

    Raises `DBAPIError` if the cause is not a row.
    """
    # A row may be refused with an SQLSTATE that would otherwise close the connection and lose the savepoints.
    connection = connection.execution_options(**{KEEPS_CONNECTION: True})
    sieve = Sieve()
    run_ids = list(choose(connection, skipped or []))
    for part in _parts(run_ids):
        try:
            sieve.changed += _behind_savepoint(connection, act, part.run_ids)
            sieve.succeeded = True
        except DBAPIError as error:
            if connection.invalidated or connection.closed or _broken(connection):
                raise
            if len(part.run_ids) == 1:
                sieve.refused[part.run_ids[0]] = error
            else:
                part.split()
    if sieve.refused and not sieve.succeeded:
        _blame(connection, act, next(iter(sieve.refused.values())))
    return sieve


@dataclass(slots=True)
class _Part:
    run_ids: list[str]
    rest: list[list[str]]

    def split(self) -> None:
        """Replace this part by its halves, to be tried next."""
        middle = len(self.run_ids) // 2
        self.rest += [self.run_ids[middle:], self.run_ids[:middle]]


def _parts(run_ids: list[str]) -> Iterator[_Part]:
    """Yield all runs as one part, then the halves of each part that is split, until no part or no time remains."""
    rest = [run_ids] if run_ids else []
    ends_at = time.monotonic() + _SECONDS
    for _ in range(_ATTEMPTS):
        if not rest or time.monotonic() > ends_at:
            return
        yield _Part(rest.pop(), rest)


def _behind_savepoint(connection: Connection, act: Act, run_ids: Sequence[str]) -> Rows:
    with connection.begin_nested():
        rows = act(connection, run_ids)
        # A constraint that is checked only at COMMIT would refuse the change for all rows.
        connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
        return rows


def _blame(connection: Connection, act: Act, error: DBAPIError) -> None:
    """Raise the error if no row is its cause: the server is, or the change fails even without rows."""
    if failure_of(error) in _OF_THE_SERVER and not raised_by_function(error):
        raise error
    _behind_savepoint(connection, act, [])


def _broken(connection: Connection) -> bool:
    driver: Any = connection.connection.driver_connection
    return not isinstance(driver, psycopg.Connection) or driver.closed
