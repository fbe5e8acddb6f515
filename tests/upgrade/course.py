"""The course of an upgrade: the last release alone, both, this one alone, and back, and forth again."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from signal import Signals
from typing import Any, LiteralString

import psycopg

from tests.faults.system import Execution
from tests.upgrade.fleet import COUNTS, Fleet

_ENDED = 15
_BEGUN = 3
_PHASE_SECONDS = 60.0
_COMMAND_SECONDS = 120.0
_INTERRUPTED_SECONDS = 0.7
"""After which the first attempt of each migration is killed: about when it begins to change tables."""
_HELD_SECONDS = 0.3
"""For what a killed process had sent to Postgres."""
_LOOK_SECONDS = 0.1
_DISPATCHING, _EXECUTING = ("beat", "dispatcher"), ("worker",)
RESUME = "resume"


class Order(StrEnum):
    """Which processes of a release are started first, each beside those of the other release."""

    DISPATCHERS = "dispatchers first"
    WORKERS = "workers first"


GROUPS: Mapping[Order, Sequence[tuple[str, ...]]] = {
    Order.DISPATCHERS: (_DISPATCHING, _EXECUTING),
    Order.WORKERS: (_EXECUTING, _DISPATCHING),
}

# Processes of either release, by the id of their row, which ends with them.
NOTES: LiteralString = """
CREATE SCHEMA upgrades;
CREATE TABLE upgrades.process (id uuid PRIMARY KEY, pid int NOT NULL);
CREATE FUNCTION upgrades.note_process() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO upgrades.process (id, pid) VALUES (NEW.id, NEW.pid) ON CONFLICT (id) DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER note_process AFTER INSERT OR UPDATE ON orcheo_dispatch.process
    FOR EACH ROW EXECUTE FUNCTION upgrades.note_process();
"""
_HELD = """
SELECT d.run_id FROM orcheo_dispatch.dispatch AS d JOIN upgrades.process AS p ON p.id = d.worker_id
 WHERE d.state = 'running' AND p.pid = %s
"""
# What the way from revision 0005 back to 0004 takes off: see its migration.
_SUBTRACTED = """
SELECT run_id, attempts - GREATEST(attempts - refunded, 1) FROM orcheo_dispatch.dispatch
 WHERE refunded > 0 AND attempts > 0
"""
_ENDS = "SELECT count(*) FROM faults.statuses WHERE after IN ('succeeded', 'failed', 'cancelled')"
_BEGINS = """
SELECT m.worker_id, count(*) FROM faults.moves AS m WHERE m.sign = 'running' AND m.n > %s GROUP BY m.worker_id
"""
_LAST_MOVE = "SELECT COALESCE(max(n), 0) FROM faults.moves"


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under which an upgrade takes place."""

    order: Order
    kills: bool
    """Whether a process of each kind and release is killed in each phase, and the first attempt of each migration."""
    execution: Execution = Execution.PLAY
    lost_runs: str = "fail"
    """While processes of the last release are alive."""


class Course:
    """Takes the processes of both releases through the course, while runs arrive."""

    def __init__(self, old: Fleet, new: Fleet, connection: psycopg.Connection[Any], conditions: Conditions) -> None:
        self.held_by_killed: Counter[str] = Counter()
        """Number of workers that were killed while they executed a run, by run."""
        self.subtracted: dict[str, int] = {}
        """Attempts that the migration back has subtracted, by run."""
        self.kills = 0
        self.standstills: list[str] = []
        """Phases in which too little happened, in words."""
        self._old, self._new = old, new
        self._connection = connection
        self._conditions = conditions
        self._groups = GROUPS[conditions.order]

    def run(self) -> None:
        """Do all of it. Raises `TimeoutError` where a process does not start, `RuntimeError` where a command fails."""
        lost_runs = self._conditions.lost_runs
        self._old.start(*COUNTS, lost_runs=lost_runs)
        self._phase("the last release alone")
        self._command("migrate")
        self._phase("the last release on the new schema", kills=False)
        for kinds in self._groups:
            self._new.start(*kinds, lost_runs=lost_runs)
            self._phase(f"beside it {' and '.join(kinds)} of this one")
            self._old.stop(*kinds)
        self._phase("this release alone")
        if self._conditions.execution is Execution.ORCHEO:
            self._resume(lost_runs)
        self._back(lost_runs)
        self._phase("the last release again")
        self._command("migrate")
        self._new.start(*COUNTS, lost_runs=lost_runs)
        self._old.stop(*COUNTS)
        self._phase("this release again")

    def _resume(self, lost_runs: str) -> None:
        """Let this release continue lost runs, as the changelog allows once no worker of the last one is alive."""
        self._new.replace(*COUNTS, lost_runs=RESUME)
        self._phase("this release alone, resuming")
        self._new.replace(*COUNTS, lost_runs=lost_runs)

    def _back(self, lost_runs: str) -> None:
        if self._old.installed.revision == self._new.installed.revision:
            for kinds in self._groups:
                self._old.start(*kinds, lost_runs=lost_runs)
                self._phase(f"back: {' and '.join(kinds)} of the last release beside this one")
                self._new.stop(*kinds)
        else:
            self._new.stop(*reversed([kind for kinds in self._groups for kind in kinds]))
            # No process changes a row now.
            self.subtracted = dict(self._connection.execute(_SUBTRACTED).fetchall())
            self._command("migrate", "--to", self._old.installed.revision)
            self._old.start(*COUNTS, lost_runs=lost_runs)

    def _phase(self, name: str, *, kills: bool = True) -> None:
        """Kill processes, and return when runs have ended since and the workers of each release have begun some."""
        if self._conditions.kills and kills:
            for fleet in (self._old, self._new):
                for kind in ("dispatcher", "worker"):
                    if fleet.has(kind):
                        self._kill(fleet, kind)
        ended, moves = self._count(_ENDS), self._count(_LAST_MOVE)
        deadline = time.monotonic() + _PHASE_SECONDS
        wanted = sum(1 for fleet in (self._old, self._new) if fleet.has("worker"))
        while self._count(_ENDS) < ended + _ENDED or self._sharing(moves) < wanted:
            if time.monotonic() > deadline:
                self.standstills.append(
                    f"{name}: within {_PHASE_SECONDS:g} s {self._count(_ENDS) - ended} runs ended,"
                    f" workers of {self._sharing(moves)} releases of {wanted} began {_BEGUN} or more"
                )
                return
            time.sleep(_LOOK_SECONDS)

    def _sharing(self, since: int) -> int:
        """Return the number of releases whose workers have begun runs since then."""
        releases = self.releases_of_workers()
        begun: dict[str, int] = {}
        for worker_id, count in self._connection.execute(_BEGINS, (since,)).fetchall():
            release = releases.get(str(worker_id), "?")
            begun[release] = begun.get(release, 0) + count
        return sum(1 for count in begun.values() if count >= _BEGUN)

    def releases_of_workers(self) -> dict[str, str]:
        """Return the name of the release by the id of each process that ever was."""
        of_pid = {pid: fleet.installed.name for fleet in (self._old, self._new) for pid in fleet.pids()}
        rows = self._connection.execute("SELECT id, pid FROM upgrades.process").fetchall()
        return {str(each): of_pid[pid] for each, pid in rows if pid in of_pid}

    def _kill(self, fleet: Fleet, kind: str) -> None:
        pid = fleet.kill(kind)
        self.kills += 1
        time.sleep(_HELD_SECONDS)
        self.held_by_killed.update(row[0] for row in self._connection.execute(_HELD, (pid,)).fetchall())

    def _command(self, *arguments: str) -> None:
        """Run a command of this release; kill its first attempt where processes are killed."""
        if self._conditions.kills:
            attempt = self._new.command(*arguments)
            try:
                attempt.communicate(timeout=_INTERRUPTED_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(attempt.pid, Signals.SIGKILL)
                self.kills += 1
                attempt.communicate()
        done = self._new.command(*arguments)
        said, _ = done.communicate(timeout=_COMMAND_SECONDS)
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {said[-2000:]}")

    def _count(self, query: LiteralString) -> int:
        row = self._connection.execute(query).fetchone()
        assert row is not None
        return int(row[0])
