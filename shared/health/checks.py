"""Health checks: each reads what a process last did, because liveness means progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Report:
    """Result of a check; `why` is one line, also if the check is ok."""

    name: str
    ok: bool
    why: str


@dataclass(frozen=True, slots=True)
class Check:
    """A name, and a function that never waits and returns whether the check is ok, and why."""

    name: str
    look: Callable[[], tuple[bool, str]]

    def report(self) -> Report:
        """Perform the check. Never raises: an error counts as a failed check."""
        try:
            return Report(self.name, *self.look())
        except Exception as error:  # noqa: BLE001 - its text may quote anything; its class is enough here
            return Report(self.name, ok=False, why=f"the check itself failed: {type(error).__name__}")


def progress(name: str, what: str, at: Callable[[], float], limit: float, *, patient: bool = True) -> Check:
    """Return the check that `what` (such as "poll succeeded") happened within `limit` seconds.

    `at` returns `time.monotonic()` of the last time, or -inf. A patient check, for liveness, allows `limit` seconds
    from now for the first time; one that is not patient, for readiness, fails until the first time.
    """
    began = time.monotonic()

    def look() -> tuple[bool, str]:
        now, last = time.monotonic(), at()
        if last == float("-inf"):
            return patient and now - began <= limit, f"no {what} yet, for {now - began:.1f} s, limit {limit:g} s"
        if now - last <= limit:
            return True, f"last {what} {now - last:.1f} s ago, limit {limit:g} s"
        return False, f"no {what} for {now - last:.1f} s, limit {limit:g} s"

    return Check(name, look)


def condition(name: str, wrong: Callable[[], str | None], well: str) -> Check:
    """Return the check that fails with the text that `wrong` returns, and reports `well` if that is None."""

    def look() -> tuple[bool, str]:
        why = wrong()
        return why is None, well if why is None else why

    return Check(name, look)
