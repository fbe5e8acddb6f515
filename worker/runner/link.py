"""Read and send frames at a runner's end of the socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.worker.books.rows import Rows
from orcheo_dispatch.worker.frames import Decoder, Down, Frame, FrameError, Hasten, Resumed, Written, encode
from orcheo_dispatch.worker.frames import Rows as RowsFrame


class Link(asyncio.Protocol):
    """Pass each frame to `take`. Uses callbacks only, so that a workflow that cancels all tasks cannot cancel it."""

    def __init__(self, take: Callable[[Down], None], lost: Callable[[], None]) -> None:
        self._take = take
        self._lost = lost
        self._decoder: Decoder[Down] = Decoder(Down)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Write to this transport from now on."""
        assert isinstance(transport, asyncio.Transport)
        # Everything is written as soon as the socket accepts it; nothing here waits for the main process.
        transport.set_write_buffer_limits(high=1 << 30)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Decode the frames that are complete."""
        try:
            for frame in self._decoder.feed(data):
                self._take(frame)
        except FrameError:
            self._lost()

    def connection_lost(self, _: Exception | None, /) -> None:
        """Exit: the main process has ended, or a workflow has closed the socket."""
        self._lost()

    def send(self, frame: Frame) -> None:
        """Send a frame."""
        if self._transport is not None:
            self._transport.write(encode(frame))


class Books:
    """What the executor gets from the main process; see `orcheo_dispatch.worker.executor.outside.Outside`."""

    def __init__(self, send: Callable[[Frame], None], provided: dict[Claim, bytes]) -> None:
        self._send = send
        self._provided = provided
        self._units = 0
        self._waiting: dict[int, asyncio.Future[str | None]] = {}

    def provided(self, claim: Claim) -> bytes | None:
        """Return what the main process has read for this run."""
        return self._provided.get(claim)

    def write(self, claim: Claim, rows: Rows, *, hasten: bool) -> asyncio.Future[str | None]:
        """Have these rows written; see `Outside`."""
        self._units += 1
        written: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._waiting[self._units] = written
        self._send(RowsFrame(self._units, claim.run_id, claim.fence, rows.texts, rows.contents, hasten))
        return written

    def resumed(self, tasks: int) -> None:
        """Note that a run continues with this many tasks."""
        self._send(Resumed(tasks))

    def hasten(self) -> None:
        """Have the rows given so far written as soon as possible."""
        self._send(Hasten())

    def written(self, frame: Written) -> None:
        """Resolve the future of the rows that were written or refused."""
        waiting = self._waiting.pop(frame.unit, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(frame.error)
