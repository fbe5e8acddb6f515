"""Run the few tests that failed once more, alone: `python -m tests.again PYTEST_EXIT_STATUS`.

The suite runs many real processes at a time, and a busy machine can delay any of them beyond what a test allows. A test
that fails alone as well fails the suite. The idea is that of `--rerun` in CPython's own suite, `test.libregrtest`.
What failed at first stays in the output: it is a defect of the test or of the product, and is to be repaired.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MOST = 5
"""More failures than these are not the machine's."""
_FAILED = Path(".pytest_cache/v/cache/lastfailed")


def main(status: int) -> int:
    """Return `status` unless it says that tests failed, and they were few and pass alone."""
    if status != pytest.ExitCode.TESTS_FAILED:
        return status
    failed = sorted(json.loads(_FAILED.read_text()))
    if not 0 < len(failed) <= MOST:
        return status
    print("\nFailed beside others, run once more alone:", *failed, sep="\n  ", flush=True)
    return subprocess.run([sys.executable, "-m", "pytest", *failed], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
