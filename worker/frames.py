"""Encode and decode frames between the main process of a worker and a runner: length-prefixed MessagePack.

Orders go down to the runner, results go up. A frame holds bytes and texts that are stored as they are, never objects:
the main process decodes no types that a workflow could define. A frame is not trusted because a runner sent it:
workflow code can write to its runner's socket. So a run's key is accepted only from the runner that has it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

PROTOCOL = 1
"""Sent in the first frame of a runner; not compared, since both ends execute the same release."""
_HEADER = struct.Struct(">I")
MAX_FRAME_BYTES = 1 << 30
"""Maximum size of a frame (bytes); senders limit the contents of a frame to less."""


class FrameError(Exception):
    """The bytes are not a valid frame, or the frame is too large."""


class Frame(msgspec.Struct, frozen=True, tag_field="t", array_like=True):
    """A frame; the first item of its array is its type."""


# --- down: from the main process


class Attach(Frame, frozen=True, tag="attach"):
    """Open the executor; `found` is what the first runner's executor found when it opened, None for the first one."""

    found: bytes | None


class Start(Frame, frozen=True, tag="start"):
    """Execute a run."""

    key: int
    """The run's number in this worker; no number is used twice."""
    run: dict[str, Any]
    """Fields of `orcheo_dispatch.shared.ledger.runs.Run`, without inputs and configuration."""
    payload: bytes
    """JSON: inputs and configuration of the run."""
    provided: bytes | None
    """What the main process has read for the executor."""


class Stop(Frame, frozen=True, tag="stop"):
    """Cancel a run; status and reason are those of `orcheo_dispatch.worker.executor.protocol.Stopped`."""

    key: int
    status: str | None
    reason: str


class Written(Frame, frozen=True, tag="written"):
    """Rows are written, or refused with this class of error."""

    unit: int
    error: str | None


class Ping(Frame, frozen=True, tag="ping"):
    """Answer when the event loop reaches this frame."""

    number: int


class Cron(Frame, frozen=True, tag="cron"):
    """Dispatch due cron triggers."""

    number: int


class Close(Frame, frozen=True, tag="close"):
    """Close the executor and exit."""


# --- up: from a runner


class Attached(Frame, frozen=True, tag="attached"):
    """The executor is open."""

    protocol: int
    found: bytes | None
    """Sent by the first runner, for all others."""
    books: bool
    """Whether the executor wants the main process to read workflows and write rows for it."""
    cron: bool
    """Whether the executor can dispatch cron triggers."""
    threads: int
    """Python threads in the process that imported the executor. A fork server with more than one must not fork."""
    server: int
    """The process id of the fork server."""


class NotAttached(Frame, frozen=True, tag="not_attached"):
    """The executor could not be opened."""

    error: str
    """The class of `orcheo_dispatch.shared.errors` to raise."""
    reason: str


class Fault(msgspec.Struct, frozen=True, array_like=True):
    """Where an error of the platform was raised; see `orcheo_dispatch.worker.runner.faults`."""

    error: str
    at: str
    certain: bool


class Ended(Frame, frozen=True, tag="ended"):
    """A run has ended in its runner."""

    key: int
    how: str
    """`succeeded`, `waiting`, `failed`, `rejected`, `cancelled_inside`, or `stopped`."""
    output: bytes | None = None
    """JSON text."""
    error: str | None = None
    """The error text that is stored in the run: redacted, cut, storable."""
    kind: str | None = None
    """The class of its error."""
    at: str | None = None
    """Where the error was raised."""
    fault: Fault | None = None
    checkpoint_id: str | None = None
    """The checkpoint at which the run waits for an answer."""
    interrupts: int = 0


class Rows(Frame, frozen=True, tag="rows"):
    """Rows of a run's trace and checkpoints."""

    unit: int
    run_id: str
    fence: int
    texts: dict[str, list[str]]
    contents: dict[str, list[bytes | None]]
    hasten: bool


class Hasten(Frame, frozen=True, tag="hasten"):
    """The sender waits for the rows that were sent before."""


class Resumed(Frame, frozen=True, tag="resumed"):
    """A run continues after its last stored step."""

    tasks: int
    """Number of tasks that are executed next; those that were in flight when the run was lost are repeated."""


class Pong(Frame, frozen=True, tag="pong"):
    """The event loop has reached a ping."""

    number: int


class Held(Frame, frozen=True, tag="held"):
    """The event loop has been blocked for a while; sent by another thread, on a socket of its own."""

    key: int | None
    """The run whose code blocks it, if that is known."""
    at: str
    node: str | None
    node_type: str | None


class CronDone(Frame, frozen=True, tag="cron_done"):
    """The result of a dispatch of cron triggers: fields of `orcheo_dispatch.shared.cron.report.CronReport`."""

    number: int
    outcome: str
    runs: int
    skipped: dict[str, int]
    reason: str


Down = Attach | Start | Stop | Written | Ping | Cron | Close
Up = Attached | NotAttached | Ended | Rows | Hasten | Resumed | Pong | Held | CronDone

_encoder = msgspec.msgpack.Encoder()


def encode(frame: Frame) -> bytes:
    """Return a frame, preceded by its length."""
    body = _encoder.encode(frame)
    return _HEADER.pack(len(body)) + body


class Decoder[T]:
    """Decode frames from the bytes of one socket, in whatever pieces these arrive."""

    def __init__(self, kind: Any, *, limit: int = MAX_FRAME_BYTES) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[T]:
        """Yield the frames that are complete. Raises `FrameError`; then nothing more can be read."""
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _HEADER.size:
                (size,) = _HEADER.unpack_from(buffer, start)
                if size > self._limit:
                    raise FrameError(f"frame of {size} bytes exceeds the limit of {self._limit} bytes")
                end = start + _HEADER.size + size
                if len(buffer) < end:
                    return
                body = bytes(memoryview(buffer)[start + _HEADER.size : end])
                start = end
                try:
                    frame = self._decoder.decode(body)
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                    raise FrameError(f"invalid frame: {type(error).__name__}") from error
                yield frame
        finally:
            del buffer[:start]
