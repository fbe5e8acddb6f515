"""Decode frames at the main process's end of a runner's socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from orcheo_dispatch.worker.frames import Decoder, FrameError, Up


class LinkEnd(asyncio.Protocol):
    """Call `on_frame` with each frame, `on_unreadable` once if bytes are not a frame, and `on_closed` at the end."""

    def __init__(
        self,
        *,
        limit: int,
        on_frame: Callable[[Up], None],
        on_unreadable: Callable[[str], None],
        on_closed: Callable[[], None],
    ) -> None:
        """`limit` is the maximum size of a frame (bytes)."""
        self._decoder: Decoder[Up] = Decoder(Up, limit=limit)
        self._on_frame = on_frame
        self._on_unreadable = on_unreadable
        self._on_closed = on_closed
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Decode the frames that are complete."""
        try:
            for frame in self._decoder.feed(data):
                self._on_frame(frame)
        except FrameError as error:
            assert self._transport is not None
            self._on_unreadable(str(error))
            self._transport.close()

    def connection_lost(self, _: Exception | None, /) -> None:
        """Note that nothing more will be read."""
        self._on_closed()
