"""What a runner brings: workflow code can write anything to the socket of its runner."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from orcheo_dispatch.worker.frames import Decoder, Ended, Frame, FrameError, Held, Pong, Rows, Up, encode
from tests.fuzz.examples import check_line, damaged, fuzzed

_SOUND: list[Frame] = [
    Pong(7),
    Ended(1, "succeeded", output=b"{}"),
    Rows(1, "run", 3, {"a": ["x"]}, {"b": [b"y", None]}, hasten=False),
    Held(1, "here", "node", None),
]
_leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
_parts = st.recursive(_leaves, lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(), each, max_size=3))
_tags = st.sampled_from(["ended", "rows", "held", "pong", "attached", "cron_done", "start", "x"])
bodies = (
    st.binary(max_size=200)
    | st.builds(lambda tag, parts: msgspec.msgpack.encode([tag, *parts]), _tags, st.lists(_parts, max_size=8))
    | st.sampled_from(_SOUND).flatmap(lambda frame: damaged(encode(frame)[4:]))
    | st.integers(1, 90_000).map(lambda depth: b"\x91" * depth + b"\xc0")
)


@given(before=st.integers(0, 3), body=bodies, cut=st.integers(0, 300))
@fuzzed
def test_frames_before_a_broken_one_are_read_and_it_is_one_error(before: int, body: bytes, cut: int) -> None:
    decoder: Decoder[Frame] = Decoder(Up)
    sent = b"".join(encode(Pong(number)) for number in range(before)) + len(body).to_bytes(4, "big") + body
    found: list[Frame] = []
    try:
        for piece in (sent[:cut], sent[cut:]):
            found.extend(decoder.feed(piece))
    except FrameError as error:
        check_line(str(error))
    assert found[:before] == [Pong(number) for number in range(before)]
    assert len(found) in {before, before + 1}


@given(stream=st.binary(max_size=400))
@fuzzed
def test_stream_of_any_bytes_is_frames_or_one_error(stream: bytes) -> None:
    decoder: Decoder[Frame] = Decoder(Up, limit=200)
    try:
        for frame in decoder.feed(stream):
            assert isinstance(frame, Frame)
    except FrameError as error:
        check_line(str(error))
