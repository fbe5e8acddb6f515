"""Change a schema while processes are running: take locks with a short timeout, and retry.

A session that waits for a lock on a table delays all sessions that request one later, such as the API's inserts. So no
statement waits longer than a third of a second, and between two attempts the other sessions proceed.
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
"""Maximum time for which a change is attempted."""


def patiently[T](engine: Engine, what: str, change: Callable[[], T]) -> T:
    """Make a change, and retry it if it does not get its locks; `what` names the changed object in the error.

    The change sets its lock timeout itself, and has no effect if it fails. Raises `RowLockedError` if other sessions
    hold the locks for two minutes.
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
