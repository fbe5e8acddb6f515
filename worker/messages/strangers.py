"""Return messages whose runs this ledger does not know: they may belong to another installation.

They are put back for a worker that knows the runs, after a pause: otherwise the same two processes would pass one
message back and forth as fast as they can. Such a worker need not exist, if the ledger was restored to a time before
the claim; so a message that was put back often is dropped. Its dispatcher claims the run again when the lease has
expired.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

from orcheo_dispatch.shared.errors import BrokerError
from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.logs.ration import Ration
from orcheo_dispatch.worker.messages.wire import Wire

_PAUSE_SECONDS = (0.3, 1.7)
"""Random, because consumers wait one second at a time: a pause in step with them would always favour the same one."""
_MOST_RETURNS = 120
"""With the pause, longer than a dispatch lease; enough to find the right one of two workers that take turns."""
_MOST_MESSAGES = 1000
_STOP_SECONDS = 5.0


class Strangers:
    """Put messages back. Thread-safe; the thread starts with the first message."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._lock = threading.Lock()
        self._waiting: list[tuple[Sequence[Claim], int, str | None]] = []
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._said = Ration()

    def put_back(self, claims: Sequence[Claim], returns: int | None, queue: str | None = None) -> None:
        """Put these back into `queue` after the pause; `returns` is the number of times that this happened before.

        None means that the message names no installation, so it belongs to none and is dropped.
        """
        put_back = returns is not None and returns < _MOST_RETURNS and self._add(claims, returns + 1, queue)
        if not returns or not put_back:
            self._say(claims, dropped=not put_back)

    def _add(self, claims: Sequence[Claim], returns: int, queue: str | None) -> bool:
        with self._lock:
            if len(self._waiting) >= _MOST_MESSAGES or self._stopping.is_set():
                return False
            self._waiting.append((claims, returns, queue))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="strangers", daemon=True)
                self._thread.start()
            return True

    def stop(self) -> None:
        """Put all waiting messages back at once, and stop."""
        with self._lock:
            self._stopping.set()
            thread = self._thread
        if thread is not None:
            thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopping.wait(random.uniform(*_PAUSE_SECONDS)):  # noqa: S311
            self._send()
        self._send()

    def _send(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for claims, returns, queue in waiting:
            try:
                self._wire.hand_back(claims, returns=returns, queue=queue)
            except BrokerError as error:
                # Their dispatcher finds that they are lost and publishes them again.
                log.warning("claims_not_handed_back", claims=len(claims), released=0, reason=str(error))

    def _say(self, claims: Sequence[Claim], *, dropped: bool) -> None:
        for claim in claims:
            if (fields := self._said.take()) is not None:
                log.warning("run_unknown", run_id=claim.run_id, fence=claim.fence, dropped=dropped, **fields)
