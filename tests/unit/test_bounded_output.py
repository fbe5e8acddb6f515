"""Writing a log line costs a bounded time, whoever reads it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from orcheo_dispatch.shared.text.bounded_output import BoundedOutput

_WAIT = 1.0
_LINE = "x" * 1000 + "\n"


@contextmanager
def _pipe(*, full: bool) -> Iterator[tuple[int, IO[str]]]:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"), os.fdopen(writing, "w") as stream:
        if full:
            os.set_blocking(writing, False)
            with suppress(BlockingIOError):
                while True:
                    os.write(writing, b"y" * 4096)
            os.set_blocking(writing, True)
        yield reading, stream


def _seconds(output: BoundedOutput, stream: IO[str], lines: int) -> float:
    began = time.monotonic()
    for _ in range(lines):
        output.write(stream, _LINE)
    return time.monotonic() - began


def test_reader_that_reads_nothing_costs_the_allowance_once() -> None:
    with _pipe(full=True) as (_, stream):
        assert _WAIT * 0.9 < _seconds(BoundedOutput(wait=_WAIT), stream, 100) < _WAIT * 3


def test_reader_that_reads_slowly_costs_no_more() -> None:
    """One page at a time, each just before a write would give up."""
    with _pipe(full=True) as (reading, stream):
        stop = threading.Event()

        def read() -> None:
            while not stop.wait(_WAIT / 4):
                os.read(reading, 4096)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            # Each write waits for a quarter of a second: a hundred of them would take twenty-five.
            assert _seconds(BoundedOutput(wait=_WAIT), stream, 100) < _WAIT * 4
        finally:
            stop.set()
            reader.join()


def test_what_was_dropped_is_counted_and_said_by_the_next_write() -> None:
    output = BoundedOutput(wait=0.01)
    with _pipe(full=True) as (reading, stream):
        assert [output.write(stream, "lost\n") for _ in range(7)] == [0] * 7
        os.read(reading, 1 << 20)
        assert output.write(stream, "first\n") == 7
        assert output.write(stream, "second\n") == 0
        os.set_blocking(reading, False)
        seen = b"".join(iter(lambda: _read(reading), b""))
        assert seen.endswith(b"first\nsecond\n")
        assert b"lost" not in seen


def _read(reading: int) -> bytes:
    try:
        return os.read(reading, 1 << 16)
    except BlockingIOError:
        return b""


def test_line_longer_than_the_pipe_takes_is_torn_once_and_the_next_one_is_whole() -> None:
    output = BoundedOutput(wait=0.01)
    with _pipe(full=False) as (reading, stream):
        assert output.write(stream, "z" * 200_000 + "\n") == 0
        os.read(reading, 1 << 20)
        assert output.write(stream, "whole\n") == 1
        assert os.read(reading, 1 << 20) == b"\nwhole\n"
