"""A session of the plugin in a process of its own, started again where it was broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.mutants.session import PIPES
from tests.mutants.statements import ROOT

_INTEGRATION = ("commands", "cron", "dispatcher", "policies", "recovery", "schema", "worker")
_FILES = (
    "integration/connections/test_lock_holders.py",
    "acceptance/test_books.py",
    "acceptance/test_cron_in_worker.py",
    "acceptance/test_orcheo_executor_tables.py",
    "page/test_page_model.py",
    "page/test_routes.py",
    "plans",
)
TESTS = (*(f"tests/integration/{folder}" for folder in _INTEGRATION), *(f"tests/{file}" for file in _FILES))
"""Those that have statements executed on the databases of the session."""


class Slot:
    """Runs tests, one command at a time. Its log and its copy of the source are in `folder`."""

    def __init__(self, folder: Path, paths: Sequence[str] = TESTS) -> None:
        self.tests: dict[str, bool] = {}
        """All tests, and whether each starts processes of ours."""
        self._folder, self._paths = folder, paths
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def ask(self, do: str, **command: Any) -> dict[str, Any]:
        """Return the answer to a command. After `died`, the session is another one."""
        if self._process is None:
            self._start()
        self._commands.write(json.dumps({"do": do, **command}) + "\n")
        self._commands.flush()
        line = self._answers.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"died": "the session has ended"}
        if "died" in answer:
            self._stop()
        return answer

    def _start(self) -> None:
        theirs, ours = os.pipe()
        ours_too, theirs_too = os.pipe()
        with (self._folder / "session.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "pytest",
                    "-q",
                    "-p",
                    "tests.mutants.session",
                    "-p",
                    "no:cacheprovider",
                    *self._paths,
                ],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs, theirs_too),
                env={**_environment(), PIPES: f"{theirs}:{theirs_too}:{self._folder / 'src'}"},
            )
        os.close(theirs)
        os.close(theirs_too)
        self._commands = os.fdopen(ours, "w", encoding="utf-8")
        self._answers = os.fdopen(ours_too, "r", encoding="utf-8")
        line = self._answers.readline()
        if not line:
            self._stop()
            raise RuntimeError(f"the session did not start: see {self._folder / 'session.log'}")
        self.tests = dict(json.loads(line)["ready"])

    def _stop(self) -> None:
        if self._process is None:
            return
        # At the end of its commands it stops its servers.
        self._commands.close()
        self._answers.close()
        self._process.wait()
        self._process = None


def _environment() -> dict[str, str]:
    """Return the environment without what pytest and its plugins tell their own processes."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
