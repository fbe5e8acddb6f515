"""What `make test` makes of tests that failed beside others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_TESTS = """
import pathlib
import pytest

def once(number):
    mark = pathlib.Path(f"mark-{number}")
    seen = mark.exists()
    mark.touch()
    return seen

@pytest.mark.parametrize("number", range(%d))
def test_passes_the_second_time(number):
    assert once(number)

@pytest.mark.parametrize("number", range(%d))
def test_never_passes(number):
    assert False

def test_passes():
    pass
"""


@pytest.mark.parametrize(
    ("first", "never", "status", "ran"),
    [(0, 0, 0, 0), (1, 0, 0, 1), (5, 0, 0, 5), (6, 0, 1, 0), (1, 1, 1, 2), (0, 1, 1, 1), (0, 6, 1, 0)],
)
def test_few_tests_that_fail_are_run_once_more(tmp_path: Path, first: int, never: int, status: int, ran: int) -> None:
    (tmp_path / "test_some.py").write_text(_TESTS % (first, never))
    (tmp_path / "pytest.ini").touch()
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "PYTEST_ADDOPTS": ""}
    python = [sys.executable, "-m"]
    suite = subprocess.run([*python, "pytest", "-q"], cwd=tmp_path, env=environment, check=False, capture_output=True)
    again = [*python, "tests.again", str(suite.returncode)]
    done = subprocess.run(again, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stdout.count("\n  test_some.py::") == ran


@pytest.mark.parametrize("status", [2, 3, 4, 5])
def test_other_ends_of_pytest_stay_what_they_are(tmp_path: Path, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.again", str(status)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        check=False,
    )
    assert done.returncode == status
