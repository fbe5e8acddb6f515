"""DBOS on Postgres, without Conductor."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psycopg

from tests.peers.environments import DBOS
from tests.peers.peer import WORKFLOWS, Peer, Worker

_SUBMIT_SECONDS = 60.0
_STATUS = "SELECT status FROM dbos.workflow_status WHERE workflow_uuid = %s"


class Dbos(Peer):
    """Each process has the same executor id, as one that replaces a lost one has: it recovers the runs at its start."""

    name = "DBOS"
    environment = DBOS
    checkpoints = ("dbos.operation_outputs",)
    runs = ("dbos.workflow_status",)
    ended = frozenset({"SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"})

    def start(self, role: str) -> Worker:
        command = ["python", str(WORKFLOWS / "dbos_chain.py"), "work", self.ground.dsn(role)]
        worker = self.launched(role, command, {}, self.ground.folder / "dbos")
        worker.wait_until(lambda: worker.says("chain is ready"))
        return worker

    def submit(self, log: Path) -> str:
        python, script = str(self.environment.programs / "python"), str(WORKFLOWS / "dbos_chain.py")
        command = [python, script, "submit", self.ground.database.dsn, str(log)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SUBMIT_SECONDS)
        return done.stdout.split()[-1]

    def status(self, run_id: str) -> str:
        with psycopg.connect(self.ground.database.dsn) as connection:
            row = connection.execute(_STATUS, (run_id,)).fetchone()
        return str(row[0]) if row else "none"
