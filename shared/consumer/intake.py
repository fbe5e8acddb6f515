"""Decide whether a consumer takes one more message."""

from __future__ import annotations

from typing import Protocol

from celery.worker import state


class Intake(Protocol):
    """What a consumer asks, from the thread of its event loop. Nothing here may wait."""

    def paused(self) -> bool:
        """Return whether to take nothing now, although there is room."""

    def in_hand(self) -> int:
        """Return how many messages are being handled; no more are taken than the pool has room for."""

    def gives_back(self) -> bool:
        """Return whether what there is no room for goes back to Redis.

        Then a message is read that Redis gave while the last room went; it would stay in the socket until there is
        room again, however long that takes.
        """

    def busy(self) -> bool:
        """Return whether there is work left that could have something to save."""


class PoolIntake:
    """Takes messages as long as Celery's pool has room; an `Intake`."""

    def paused(self) -> bool:
        """Never pause."""
        return False

    def in_hand(self) -> int:
        """Return how many messages Celery holds."""
        return len(state.reserved_requests)

    def gives_back(self) -> bool:
        """Give nothing back."""
        return False

    def busy(self) -> bool:
        """Return whether Celery holds any message."""
        return bool(state.reserved_requests)
