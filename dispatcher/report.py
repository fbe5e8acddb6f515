"""What a poll says of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PollReport:
    """What one poll did, in runs."""

    lost: int = 0
    requeued: int = 0
    extended: int = 0
    released: int = 0
    room: int = 0
    claimed: int = 0
    published: int = 0
    broker_error: str | None = None
    failing: tuple[str, ...] = ()
    """The steps that failed: each was passed over, and its reason is in the log."""
    next_delay: float | None = None
    """Seconds after which to poll again without waiting for the next tick; None where nothing hurries."""

    @property
    def dispatches(self) -> bool:
        """Whether it could look for runs and claim them."""
        return not {"look", "claim"} & set(self.failing)
