"""Change a schema beside live processes: take locks with a short timeout, and retry.

A statement that waits for a table lock blocks every later one: the API's inserts, for example. So no statement
waits for longer than a third of a second, and between two tries everybody else has his turn.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random

from orcheo_dispatch.shared.database.connections import MIGRATION_LOCK_MILLISECONDS
from orcheo_dispatch.shared.database.lock_holders import lock_holders
from orcheo_dispatch.shared.database.sqlstate import Failure, failure_of
from orcheo_dispatch.shared.errors import RowLockedError

LOCK_MILLISECONDS = MIGRATION_LOCK_MILLISECONDS
PATIENCE_SECONDS = 120.0
"""How long a change is tried."""


def patiently[T](engine: Engine, what: str, change: Callable[[], T]) -> T:
    """Make a change, again and again where it does not get its locks; `what` is what is changed, for the error.

    The change sets its lock timeout itself, and leaves nothing behind where it fails. Raises `RowLockedError` where
    others keep the locks for two minutes.
    """

    def give_up(state: RetryCallState) -> T:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None
        if failure_of(error) is not Failure.LOCKED:
            raise error
        raise RowLockedError(f"{what}: locked by others for {PATIENCE_SECONDS:g} s{_by(engine)}") from error

    return Retrying(
        retry=retry_if_exception(_may_succeed),
        wait=wait_random(0.2, 1.0),
        stop=stop_after_delay(PATIENCE_SECONDS),
        retry_error_callback=give_up,
    )(change)


def _may_succeed(error: BaseException) -> bool:
    return isinstance(error, DBAPIError) and failure_of(error) in (Failure.LOCKED, Failure.CONFLICT)


def _by(engine: Engine) -> str:
    holders = lock_holders(engine, writers=True)
    return f": {holders}" if holders else ""
