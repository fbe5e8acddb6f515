"""Decide whether a consumer takes one more message."""

from __future__ import annotations

from typing import Protocol

from celery.worker import state


class Intake(Protocol):
    """Decisions that a consumer asks for from the thread of its event loop. No method may block."""

    def paused(self) -> bool:
        """Return whether to take nothing now, although there is room."""

    def in_hand(self) -> int:
        """Return how many messages are in progress; no more are taken than the pool has room for."""

    def gives_back(self) -> bool:
        """Return whether messages for which there is no room are returned to Redis.

        If so, a message that Redis delivered just as the last room was taken is read. Otherwise it would stay in the
        socket until there is room again, however long that takes.
        """

    def busy(self) -> bool:
        """Return whether any remaining work could have something to save."""


class PoolIntake:
    """Takes messages as long as Celery's pool has room; an `Intake`."""

    def paused(self) -> bool:
        """Never pause."""
        return False

    def in_hand(self) -> int:
        """Return how many messages Celery holds."""
        return len(state.reserved_requests)

    def gives_back(self) -> bool:
        """Return nothing to Redis."""
        return False

    def busy(self) -> bool:
        """Return whether Celery holds any message."""
        return bool(state.reserved_requests)
