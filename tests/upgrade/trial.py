"""One upgrade: start everything, let the load and the course run, wait for rest, and judge."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedRedis
from tests.faults.acts import executions_beside
from tests.faults.evidence import Evidence, read_logs, read_notes, read_tables
from tests.faults.ground import Ground
from tests.faults.plan import Plan
from tests.faults.supervisor import Supervisor
from tests.faults.system import Execution, System, calls_in
from tests.faults.trial import keep, wait_for_rest
from tests.faults.workload import Workload
from tests.support.orcheo import stored_steps
from tests.upgrade.course import NOTES, RESUME, Conditions, Course
from tests.upgrade.fleet import THIS, Fleet, Servers
from tests.upgrade.judge import Finding, judge
from tests.upgrade.load import make_load
from tests.upgrade.releases import Installed

_LOAD_SECONDS = 900.0
"""More than a trial takes."""
_RUNS_PER_SECOND = 6.0


@dataclass(frozen=True)
class Verdict:
    """What an upgrade has shown."""

    release: str
    conditions: Conditions
    runs: int
    begun: Counter[str]
    """Begins by the release of the worker."""
    kills: int
    lost_with_worker: int
    """Runs that a killed worker was executing."""
    findings: list[Finding]
    seconds: float
    folder: Path
    """Logs and tables; removed by `discard`."""

    def discard(self) -> None:
        """Remove what was kept."""
        shutil.rmtree(self.folder, ignore_errors=True)


def run_trial(old: Installed, ground: Ground, conditions: Conditions, *, seed: int) -> Verdict:
    """Carry an upgrade out and judge it. Leaves nothing running; its folder is the caller's to discard.

    `ground` has the schema of the last release. Raises `TimeoutError` where a process does not start, and
    `RuntimeError` where a migration fails; the folder is kept then.
    """
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="orcheo-dispatch-upgrade-"))
    with ExitStack() as stack:
        database = stack.enter_context(ground.database())
        broker = stack.enter_context(EmbeddedRedis(folder / "redis"))
        slots = stack.enter_context(EmbeddedRedis(folder / "slots"))
        connection = stack.enter_context(psycopg.connect(database.dsn, autocommit=True))
        connection.execute(NOTES)
        if conditions.execution is Execution.ORCHEO:
            stored_steps.install(connection)
        load = make_load(seed, seconds=_LOAD_SECONDS, per_second=_RUNS_PER_SECOND)
        workload = stack.enter_context(
            closing(
                Workload(
                    load,
                    ground.workflow,
                    dsn=database.dsn,
                    broker=broker.url,
                    slots=slots.url,
                    calls=calls_in(folder),
                    only_pushed=False,
                )
            )
        )
        servers = Servers(database.dsn, broker.url, slots.url, folder, conditions.execution)
        supervisor = Supervisor([], folder)
        course = Course(Fleet(old, servers, supervisor), Fleet(THIS, servers, supervisor), connection, conditions)
        with supervisor:
            with workload.arriving(until_end=False):
                course.run()
            wait_for_rest(database, workload, System.OURS)
        runs, ledger, history = read_tables(database.dsn)
        evidence = Evidence(
            plan=_created(load, set(history.statuses_of)),
            lost_runs=RESUME if conditions.execution is Execution.ORCHEO else conditions.lost_runs,
            fenced=True,
            runs=runs,
            ledger=ledger,
            history=history,
            notes=read_notes(servers.side_effects),
            injected=[],
            exits=supervisor.exits,
            cancelled=workload.cancelled,
            slots_leaked=workload.slots_leaked(),
            logs=read_logs(supervisor.logs()),
            secrets=(workload.marker, str(urlsplit(database.dsn).password)),
            executions=stored_steps.read_executions(executions_beside(servers.side_effects)),
            subtracted=course.subtracted,
            stored=stored_steps.read_stored(connection) if conditions.execution is Execution.ORCHEO else [],
        )
        releases = course.releases_of_workers()
    findings = judge(evidence, course.standstills, course.held_by_killed, conditions.lost_runs)
    keep(evidence, [], folder)
    return Verdict(
        release=old.name,
        conditions=conditions,
        runs=len(runs),
        begun=Counter(releases.get(str(move.worker_id), "?") for move in history.moves if move.sign == "running"),
        kills=course.kills,
        lost_with_worker=len(course.held_by_killed),
        findings=findings,
        seconds=time.monotonic() - began,
        folder=folder,
    )


def _created(load: Plan, run_ids: set[str]) -> Plan:
    """Return the part of the load that was created before it was stopped."""
    return replace(load, runs=tuple(run for run in load.runs if run.run_id in run_ids))
