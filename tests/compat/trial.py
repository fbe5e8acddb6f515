"""What is tried in an environment, and what came of it."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.compat.sets import FOLDER, ROOT, Environment

PART = (
    "tests/acceptance/test_orcheo_executor.py",
    "tests/acceptance/test_orcheo_executor_output.py",
    "tests/acceptance/test_orcheo_executor_tables.py",
    "tests/acceptance/test_same_as_stock.py",
    "tests/acceptance/test_way_of_a_run.py",
)
"""The executor on its own, beside the stock worker of the same release, and with the API and all our processes."""
_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Trial:
    """The tests that ran in an environment."""

    environment: Environment
    wrong: str | None
    """What the probe of a worker says of the releases."""
    unfit: str | None
    """Why LangGraph's own saver writes the checkpoints; None where the group commit does."""
    passed: int
    failed: tuple[str, ...]
    skipped: int
    seconds: float

    @property
    def is_good(self) -> bool:
        """Whether a worker may run with these releases."""
        return self.wrong is None and self.passed > 0 and not self.failed


def carry_out(environment: Environment, tests: tuple[str, ...]) -> Trial:
    """Probe the environment and run the tests in it."""
    began = time.monotonic()
    done = subprocess.run(
        [environment.python, "-m", "orcheo_dispatch.worker.orcheo.opening.probe"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    probed = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"wrong": done.stderr[-500:]}
    report = FOLDER / f"{environment.python.parents[1].name}.xml"
    report.unlink(missing_ok=True)
    subprocess.run(
        [
            *(environment.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"),
            *tests,
        ],
        cwd=ROOT,
        check=False,
        timeout=_SECONDS,
    )
    passed, failed, skipped = _read(report)
    seconds = time.monotonic() - began
    return Trial(environment, probed.get("wrong"), probed.get("unfit"), passed, failed, skipped, seconds)


def _read(report: Path) -> tuple[int, tuple[str, ...], int]:
    if not report.exists():
        return 0, ("pytest did not end",), 0
    passed, failed, skipped = 0, [], 0
    for case in ElementTree.parse(report).iter("testcase"):
        outcomes = {child.tag for child in case}
        if outcomes & {"failure", "error"}:
            failed.append(case.get("name") or "?")
        elif "skipped" in outcomes:
            skipped += 1
        else:
            passed += 1
    return passed, tuple(failed), skipped
