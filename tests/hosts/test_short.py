"""The short form of `make hosts`: one scenario."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hosts.network import why_not
from tests.hosts.scenarios import SCENARIOS, SHORT

_ROOT = Path(__file__).parents[2]


def test_names_of_scenarios_differ() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)


@pytest.mark.skipif(why_not() is not None, reason=f"no hosts: {why_not()}")
@pytest.mark.timeout(240)
def test_no_promise_is_broken_when_the_primary_is_cut_off_and_the_standby_promoted() -> None:
    # A process of its own: threads of this one must not be left on a host.
    command = [sys.executable, "-m", "tests.hosts", "--only", SHORT]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
