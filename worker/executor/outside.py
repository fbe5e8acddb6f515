"""Define what an executor may request from the main process: what was read for a run, and writing rows."""

from __future__ import annotations

import asyncio
from typing import Protocol

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.worker.books.rows import Rows


class Outside(Protocol):
    """The other end of the runner's socket, as an executor sees it. For the event loop's thread only."""

    def provided(self, claim: Claim) -> bytes | None:
        """Return what the main process has read for this run: see `orcheo_dispatch.worker.books.workflows.Provided`."""
        ...

    def write(self, claim: Claim, rows: Rows, *, hasten: bool) -> asyncio.Future[str | None]:
        """Have these rows of a run written: soon, or as soon as possible if `hasten` is set.

        The future's result is None when they are written, or the class of the error with which they were refused.
        """
        ...

    def resumed(self, tasks: int) -> None:
        """Note, for the metrics, that a run continues with this many tasks."""
        ...

    def hasten(self) -> None:
        """Have the rows given so far written as soon as possible."""
        ...
