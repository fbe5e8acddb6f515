"""Frames that a runner's socket may bring: each is read, or is one error."""

from __future__ import annotations

import msgspec
import pytest

from orcheo_dispatch.worker.frames import Decoder, Frame, FrameError, Pong, Up, encode


def _frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        # Nested more deeply than can be read, where the reader skips what it does not know.
        b"\x93\xa4pong\x01" + b"\x91" * 90_000 + b"\xc0",
        # Text that is not UTF-8, as a tag and as a field.
        b"\x92\xa4po\xffg\x01",
        b"\x93\xa5ended\x01\xa2\xff\xff",
        msgspec.msgpack.encode(["no such frame", 1]),
    ],
)
def test_frame_that_cannot_be_read_is_one_error(body: bytes) -> None:
    decoder: Decoder[Frame] = Decoder(Up)
    assert list(decoder.feed(encode(Pong(7)))) == [Pong(7)]
    with pytest.raises(FrameError, match=r"^invalid frame: [A-Za-z]+$"):
        list(decoder.feed(_frame(body)))
