"""The command on a host whose clock is off by `TEST_CLOCK_HOURS`.

`python -m tests.support.processes.clock_off beat`
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import time_machine

from orcheo_dispatch.ops.cli import main

if __name__ == "__main__":
    there = datetime.now(UTC) + timedelta(hours=float(os.environ["TEST_CLOCK_HOURS"]))
    with time_machine.travel(there, tick=True):
        main()
