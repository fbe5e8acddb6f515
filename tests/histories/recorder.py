"""Append each call of a process to a file, before it is made, and its answer, once it is known.

A line is written at once, so that the calls of a process that is killed are there without their answers. Lines hold run
ids, fences and words of the protocol; no inputs and no outputs.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.histories.operations import Verb

VARIABLE = "TEST_CALLS"
"""Names the file in the environment of the processes."""


class Call:
    """One call under way."""

    answer: Any = None
    """What the database answered; to be set by the caller."""
    without_effect = False
    """Whether the call failed, and the database answered that nothing was changed."""


class Recorder:
    """Writes the calls of one process. May be used from many threads."""

    def __init__(self, file: Path, name: str) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._by = f"{name}-{os.getpid()}"
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    @contextmanager
    def call(self, verb: Verb, asked: Sequence[Any], **arguments: Any) -> Iterator[Call]:
        """Record a call that the block makes. `asked` has what is asked for each run, its id first."""
        with self._lock:
            number = next(self._numbers)
        call = Call()
        self._write({"by": self._by, "n": number, "at": time.monotonic(), "verb": verb, "asked": asked, **arguments})
        try:
            yield call
        except BaseException:
            if call.without_effect:
                self._write({"by": self._by, "n": number, "at": time.monotonic(), "without_effect": True})
            raise
        self._write({"by": self._by, "n": number, "at": time.monotonic(), "answer": call.answer})

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._file, f"{json.dumps(line, default=str)}\n".encode())
