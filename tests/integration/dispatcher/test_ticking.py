"""When Beat wakes: once per message, not all the time in the last milliseconds before one is due."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orcheo_dispatch.ops.sandbox.orcheo_environment import process_environment
from tests.support.database.databases import Database
from tests.support.processes.processes import ROOT

_TICKS = 4


@pytest.mark.parametrize(("interval", "cron_interval"), [("0.1", "60"), ("0.5", "60"), ("0.4", "1")])
def test_beat_wakes_a_few_times_per_message(
    database: Database, redis_url: str, interval: str, cron_interval: str
) -> None:
    # In a process of its own: Celery keeps the tasks of all apps of a process in one place.
    program = [sys.executable, "-m", "tests.support.processes.counted_beat", str(_TICKS)]
    variables = {
        "ORCHEO_POSTGRES_DSN": database.dsn,
        "REDIS_URL": redis_url,
        "ORCHEO_DISPATCH_POLL_INTERVAL": interval,
        "ORCHEO_CRON_INTERVAL": cron_interval,
    }
    done = subprocess.run(
        program, cwd=ROOT, env=process_environment(variables), capture_output=True, text=True, timeout=60, check=True
    )
    # Per message one to send it, one to wait for the next, and one more if the clock says that this was too early.
    # Celery's own scheduler wakes some hundred times.
    assert int(done.stdout.split()[-1]) <= 3 * (_TICKS + 1)
