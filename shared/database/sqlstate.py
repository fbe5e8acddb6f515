"""Classify errors of Postgres by SQLSTATE: an outage, or a refusal of this statement or item.

The classes are those of the manual's appendix "PostgreSQL Error Codes": the first two characters of a SQLSTATE.
"""

from __future__ import annotations

from enum import StrEnum

import psycopg


class Failure(StrEnum):
    """What to do about a failed statement or commit."""

    OUTAGE = "outage"
    """The server is unavailable, or lacks a resource. A retry may succeed later; the change may have been made."""
    CONFLICT = "conflict"
    """Rolled back because of another transaction. Nothing was changed, and a retry may succeed at once."""
    LOCKED = "locked"
    """Another session held a lock for longer than the caller waits. Nothing was changed."""
    TIMEOUT = "timeout"
    """Cancelled by a timeout or an operator. Nothing was changed."""
    READ_ONLY = "read_only"
    """The server is read-only: after a failover, or by configuration. Nothing was changed."""
    POOLER = "pooler"
    """The session is a different one than before: an undetected transaction pooler."""
    SCHEMA = "schema"
    """An object is missing, or this role has no right to use it. An operator has to act."""
    REFUSED = "refused"
    """Postgres, a constraint, a trigger or a policy will never accept this value."""


STATEMENT_COMPLETION_UNKNOWN = "40003"

_STATES = {
    # Belongs to the class of conflicts, but is the only one in it that must not be retried blindly.
    STATEMENT_COMPLETION_UNKNOWN: Failure.OUTAGE,
    # Raised at COMMIT by a deferred constraint or trigger.
    "40002": Failure.REFUSED,
    "55P03": Failure.LOCKED,
    "57014": Failure.TIMEOUT,
    "25P03": Failure.TIMEOUT,
    "25P04": Failure.TIMEOUT,
    "25006": Failure.READ_ONLY,
    "26000": Failure.POOLER,
    "42P05": Failure.POOLER,
    # A limit of the role (temp_file_limit), not of the machine.
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
"""Errors of the driver itself: the connection broke, or was never established."""


def failure_of_state(sqlstate: str) -> Failure:
    """Return the failure that a SQLSTATE stands for, if nothing else is known; an unknown one counts as refused."""
    return _STATES.get(sqlstate) or _CLASSES.get(sqlstate[:2]) or Failure.REFUSED


def answered(error: BaseException | None) -> bool:
    """Return whether the server reported this error and the session continues.

    FATAL and PANIC end the session, and an error raised by the driver itself has no severity. A trigger, constraint or
    policy can raise no more than ERROR, whatever its SQLSTATE.
    """
    error = getattr(error, "orig", None) or error
    return isinstance(error, psycopg.Error) and error.diag.severity_nonlocalized == "ERROR"


def failure_of(error: BaseException | None) -> Failure:
    """Return the failure that an error of the driver or SQLAlchemy stands for; an unknown one counts as refused."""
    error = getattr(error, "orig", None) or error
    state = getattr(error, "sqlstate", None)
    if state is None:
        return Failure.OUTAGE if isinstance(error, _WITHOUT_STATE) else Failure.REFUSED
    return failure_of_state(state)
