"""What the pool of runners needs of that which reads workflows and writes rows: see `worker.books.books.Books`."""

from __future__ import annotations

import asyncio
from typing import Protocol

from shared.ledger import Claim
from shared.runs import Run
from worker.books.rows import Rows
from worker.books.workflows import Provided


class BookKeeper(Protocol):
    """For the pool's event loop, but for `makes_progress`."""

    @property
    def makes_progress(self) -> bool:
        """Whether statements are begun while rows wait; may be asked from any thread."""

    async def open(self) -> None:
        """Connect. Raises `DatabaseError`."""

    async def close(self) -> None:
        """Write what is left, and disconnect."""

    async def provide(self, run: Run, known_at: str | None) -> Provided:
        """Return what an executor needs of Orcheo's tables to execute a run."""

    def write(self, run: Claim, rows: Rows, *, hasten: bool) -> asyncio.Future[str | None]:
        """Write rows of a run; the result is None, or the class of the error that they were refused with."""

    def hasten(self) -> None:
        """Write as soon as possible what was given before."""

    def abandon(self, run: Claim) -> None:
        """Write nothing more of a run."""
