"""A command on a terminal of its own: what it shows is read, what a person would type is typed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.processes.processes import ROOT, until

# The first terminal that a leader of a session opens becomes that of the session: Ctrl-C and hidden input work.
_ON_TERMINAL = """
import os, sys
terminal = os.open(sys.argv[1], os.O_RDWR)
for number in range(3):
    os.dup2(terminal, number)
os.execv(sys.argv[2], sys.argv[2:])
"""
CTRL_C = "\x03"


class Terminal:
    """A command that runs on a pseudo-terminal; ends with the block."""

    def __init__(self, *command: str, environment: Mapping[str, str], directory: Path = ROOT) -> None:
        self._ours, theirs = os.openpty()
        self._shown = bytearray()
        self._answered = 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ON_TERMINAL, os.ttyname(theirs), *command],
            env=dict(environment),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._theirs = theirs
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._theirs)
        self._reader.join()
        os.close(self._ours)
        if kind is not None:
            print(f"--- shown on the terminal\n{self.shown}", file=sys.stderr)

    @property
    def shown(self) -> str:
        """All that the terminal has shown so far, also what was typed and not hidden."""
        return self._shown.decode(errors="replace").replace("\r\n", "\n")

    def answer(self, question: str, text: str) -> None:
        """Wait for a question that was not shown before, and type an answer.

        Nothing is typed before the space at the end of the prompt: Click writes it last, and getpass drops what was
        typed before.
        """
        before = self._answered

        def asked() -> bool:
            _, found, rest = self.shown[before:].partition(question)
            return bool(found) and (not text or ": " in rest)

        until(lambda: asked() or self._process.poll() is not None, what=f"{question!r}")
        assert asked(), self.shown
        self._answered = self.shown.index(question, before) + len(question)
        os.write(self._ours, text.encode())

    def exit_code(self) -> int:
        """Wait for the end, and for all that was shown before it."""
        code = self._process.wait(60)
        os.write(self._theirs, b"\x00")
        until(lambda: self._shown.endswith(b"\x00"), what="the end of what was shown")
        return code

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self._ours, 65_536)
            except OSError:
                # Nobody has the other end open.
                return
            if not part:
                return
            self._shown += part
