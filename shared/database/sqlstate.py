"""Classify errors of Postgres by SQLSTATE: an outage, or a refusal of this statement or item.

The classes are those of the manual's appendix "PostgreSQL Error Codes": the first two characters of a SQLSTATE.
"""

from __future__ import annotations

from enum import StrEnum

import psycopg


class Failure(StrEnum):
    """What to do about a failed statement or commit."""

    OUTAGE = "outage"
    """The server is unavailable, or short of something. The same may succeed later; whether it happened is unknown."""
    CONFLICT = "conflict"
    """Rolled back on account of another transaction. Nothing happened, and the same may succeed at once."""
    LOCKED = "locked"
    """Another session held a lock for longer than the caller waits. Nothing was changed."""
    TIMEOUT = "timeout"
    """Ended by a timeout or by an operator. Nothing happened."""
    READ_ONLY = "read_only"
    """The server is read-only: after a failover, or by configuration. Nothing was changed."""
    POOLER = "pooler"
    """The session is another one than before: a transaction pooler was taken for a server."""
    SCHEMA = "schema"
    """Something is missing, or this role has no right to it. An operator has to act."""
    REFUSED = "refused"
    """Postgres, a constraint, a trigger or a policy will never take this value."""


STATEMENT_COMPLETION_UNKNOWN = "40003"

_STATES = {
    # Of the class of conflicts, and the only one of it that must not be repeated blindly.
    STATEMENT_COMPLETION_UNKNOWN: Failure.OUTAGE,
    # Raised at the end by a deferred constraint or trigger.
    "40002": Failure.REFUSED,
    "55P03": Failure.LOCKED,
    "57014": Failure.TIMEOUT,
    "25P03": Failure.TIMEOUT,
    "25P04": Failure.TIMEOUT,
    "25006": Failure.READ_ONLY,
    "26000": Failure.POOLER,
    "42P05": Failure.POOLER,
    # A limit of the role (temp_file_limit) and not of the machine.
    "53400": Failure.REFUSED,
}
_CLASSES = {
    "08": Failure.OUTAGE,
    "28": Failure.OUTAGE,
    "53": Failure.OUTAGE,
    "55": Failure.OUTAGE,
    "57": Failure.OUTAGE,
    "58": Failure.OUTAGE,
    "40": Failure.CONFLICT,
    "3D": Failure.SCHEMA,
    "3F": Failure.SCHEMA,
    "42": Failure.SCHEMA,
}
_WITHOUT_STATE = (psycopg.OperationalError, psycopg.InterfaceError)
"""The driver's own: the connection broke, or was never made."""


def failure_of_state(sqlstate: str) -> Failure:
    """Return what a SQLSTATE means without further information; an unknown one means refused."""
    return _STATES.get(sqlstate) or _CLASSES.get(sqlstate[:2]) or Failure.REFUSED


def answered(error: BaseException | None) -> bool:
    """Return whether the server reported this error and the session is still usable.

    A session ends with FATAL or PANIC, and an error that the driver made itself has no severity. No trigger, constraint
    or policy can raise more than ERROR, whatever SQLSTATE it names.
    """
    error = getattr(error, "orig", None) or error
    return isinstance(error, psycopg.Error) and error.diag.severity_nonlocalized == "ERROR"


def failure_of(error: BaseException | None) -> Failure:
    """Return what an error of the driver, or one of SQLAlchemy around it, means; an unknown one means refused."""
    error = getattr(error, "orig", None) or error
    state = getattr(error, "sqlstate", None)
    if state is None:
        return Failure.OUTAGE if isinstance(error, _WITHOUT_STATE) else Failure.REFUSED
    return failure_of_state(state)
