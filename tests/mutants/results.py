"""What is known of each test and of each mutant, kept in files so that a run can be continued."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tests.mutants.statements import ROOT, Statement

RESULTS = ROOT / "build" / "mutants.json"
RECORDED = ROOT / "build" / "mutants" / "recorded.json"


class Fate(StrEnum):
    """What became of a mutant."""

    KILLED = "killed"
    TIMED_OUT = "killed by timeout"
    SURVIVED = "survived"
    INVALID = "invalid"
    """Postgres refuses to prepare it."""
    EQUIVALENT = "equivalent"


@dataclass(frozen=True, slots=True)
class Result:
    """The fate of a mutant: the test that killed it and what that said, or how many tests did not."""

    fate: Fate
    by: str = ""
    why: str = ""
    tests: int = 0


@dataclass(frozen=True, slots=True)
class Recorded:
    """A test that passes without a mutant: how long it takes (seconds) and which statements it executes."""

    seconds: float
    executed: frozenset[str]


class Results:
    """Results by statement and change. Those of a statement that has changed are forgotten."""

    def __init__(self, path: Path = RESULTS) -> None:
        self._path, self._lock = path, threading.Lock()
        self._found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def of(self, statement: Statement) -> dict[str, Result]:
        """Return the results of one statement by change."""
        found = self._found.get(statement.key, {})
        if found.get("digest") != statement.digest:
            return {}
        return {change: Result(**{**each, "fate": Fate(each["fate"])}) for change, each in found["mutants"].items()}

    def add(self, statement: Statement, change: str, result: Result) -> None:
        """Keep a result."""
        with self._lock:
            found = self._found.get(statement.key)
            if found is None or found["digest"] != statement.digest:
                found = self._found[statement.key] = {"digest": statement.digest, "mutants": {}}
            found["mutants"][change] = asdict(result)
            _write(self._path, self._found)


class Recording:
    """What is known of the tests."""

    def __init__(self, path: Path = RECORDED) -> None:
        self._path, self._lock = path, threading.Lock()
        self._found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def knows(self, test: str) -> bool:
        """Return whether the test was recorded, and be it that it failed."""
        return test in self._found

    def add(self, test: str, answer: dict[str, Any]) -> None:
        """Keep the answer of a session to `record`."""
        passed = not {"failed", "skipped", "died"} & answer.keys()
        seconds = answer.get("took", {}).get(test, 0.0)
        with self._lock:
            self._found[test] = {"passed": passed, "seconds": seconds, "executed": answer.get("executed", [])}
            _write(self._path, self._found)

    def passed(self) -> dict[str, Recorded]:
        """Return the tests that passed."""
        with self._lock:
            return {
                test: Recorded(each["seconds"], frozenset(each["executed"]))
                for test, each in self._found.items()
                if each["passed"]
            }


def counted(results: Results, statements: list[Statement]) -> Counter[Fate]:
    """Return how many mutants of these statements met each fate."""
    return Counter(result.fate for each in statements for result in results.of(each).values())


def _write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    partial.rename(path)
