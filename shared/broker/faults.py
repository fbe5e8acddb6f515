"""Classify errors of Redis: an outage, a full server, or a permanent refusal.

UNAVAILABLE   it does not answer, or reports a temporary state   ends without intervention
FULL          it answers, but stores nothing more at present     ends when memory or disk is freed
REFUSED       it answers, but will never do what we ask          an operator has to change rights, address or server
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum

import redis.exceptions as errors

from orcheo_dispatch.shared.text.redaction import error_line


class Fault(StrEnum):
    """What kind of error it is."""

    UNAVAILABLE = "unavailable"
    FULL = "full"
    REFUSED = "refused"


_SAYS = {
    Fault.UNAVAILABLE: "Redis is unavailable",
    Fault.FULL: "Redis stores nothing",
    Fault.REFUSED: "Redis refuses",
}

# redis-py turns the code in some texts into an exception class and removes it; in scripts and through kombu it stays.
_CLASSES: tuple[tuple[Fault, tuple[type[Exception], ...]], ...] = (
    (Fault.FULL, (errors.OutOfMemoryError,)),
    (
        Fault.REFUSED,
        (
            errors.AuthenticationError,
            errors.AuthorizationError,
            errors.NoPermissionError,
            errors.AuthenticationWrongNumberOfArgsError,
            errors.ClusterCrossSlotError,
            errors.AskError,
        ),
    ),
    (
        Fault.UNAVAILABLE,
        (errors.ReadOnlyError, errors.ClusterDownError, errors.TryAgainError, errors.BusyLoadingError),
    ),
)
_TEXTS = (
    (Fault.FULL, re.compile(r"\b(OOM|MISCONF|NOREPLICAS)\b|used memory > 'maxmemory'")),
    (
        Fault.REFUSED,
        re.compile(
            r"\b(NOPERM|WRONGPASS|NOAUTH|WRONGTYPE|CROSSSLOT|MOVED|ASK)\b|DB index|Invalid Database|unknown command"
            r"|username-password pair|no password is set|CERTIFICATE_VERIFY_FAILED|certificate required"
            r"|no permissions to|same slot|can't run this command|can't access at least"
        ),
    ),
    (
        Fault.UNAVAILABLE,
        re.compile(r"\b(READONLY|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|BUSY)\b|read only replica|number of clients"),
    ),
)
_READ_ONLY = re.compile(r"\bREADONLY\b|read only replica|instance state changed")


def classify(error: BaseException) -> Fault:
    """Return what this error, or its cause, says about Redis; an unknown error counts as an outage."""
    for each in _chain(error):
        for fault, classes in _CLASSES:
            if isinstance(each, classes):
                return fault
        for fault, pattern in _TEXTS:
            if pattern.search(str(each)):
                return fault
    return Fault.UNAVAILABLE


def is_read_only(error: BaseException) -> bool:
    """Return whether the server is read-only: a failover made it a replica, and the address leads to another server."""
    return any(isinstance(each, errors.ReadOnlyError) or _READ_ONLY.search(str(each)) for each in _chain(error))


def problem(error: BaseException) -> str:
    """Return one human-readable line about what is wrong with Redis, without a password."""
    fault = classify(error)
    return _SAYS[fault] if fault is Fault.UNAVAILABLE else f"{_SAYS[fault]}: {error_line(error)}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__
