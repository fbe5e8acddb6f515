"""DBOS's side: `python -m tests.bench.peers.dbos_app` works until SIGTERM; with `prepare` it makes the tables only."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from dbos import DBOS

QUEUE = "noop"


def main(only_tables: bool) -> None:
    """Start DBOS on the database of the environment."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    DBOS(
        config={
            "name": "bench",
            "system_database_url": os.environ["BENCH_DSN"],
            "run_admin_server": False,
            "log_level": "WARNING",
            # Otherwise a process takes only what was enqueued for its own code.
            "application_version": "bench",
        }
    )
    DBOS.workflow(name="noop")(noop)
    DBOS.launch()
    DBOS.register_queue(QUEUE)
    if not only_tables:
        stopping.wait()
    DBOS.destroy()


def noop(_body: dict[str, Any], _headers: dict[str, Any]) -> None:
    """Do nothing."""


if __name__ == "__main__":
    main("prepare" in sys.argv[1:])
