"""One trial: start everything, let workload and faults run their course, wait for rest, and judge."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedRedis
from tests.faults.acts import executions_beside
from tests.faults.checker import Finding, check
from tests.faults.evidence import Evidence, read_logs, read_notes, read_operations, read_tables
from tests.faults.full_disk import FillableRedis
from tests.faults.ground import Ground
from tests.faults.injector import Injector
from tests.faults.links import Links, Server
from tests.faults.plan import Plan
from tests.faults.recovery import Recovery, recovery_of
from tests.faults.supervisor import Supervisor
from tests.faults.system import Execution, System, calls_in, process_names, units
from tests.faults.workload import Workload
from tests.support.database.databases import Database
from tests.support.orcheo import stored_steps

RESUME = "resume"
"""The policy under which steps are stored."""
_REST_SECONDS = 90.0
_SLOTS_SECONDS = 60.0
"""For slots of runs that have ended: dispatchers look each half minute for those that have been due for a quarter."""
_STILL_SECONDS = 20.0
_LOOK_SECONDS = 0.2
_UNREST = """
SELECT (SELECT count(*) FROM workflow_runs WHERE status IN ('pending', 'running')),
       (SELECT count(*) FROM orcheo_dispatch.dispatch WHERE state <> 'settled' OR slot IN ('held', 'due'))
           + (SELECT count(*) FROM workflow_runs AS r WHERE r.status = 'cancelled'
                 AND NOT EXISTS (SELECT FROM orcheo_dispatch.dispatch AS d WHERE d.run_id = r.id)),
       (SELECT count(*) FROM faults.statuses)
"""


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under which a plan is carried out."""

    system: System = System.OURS
    execution: Execution = Execution.PLAY
    lost_runs: str = "fail"


@dataclass(frozen=True)
class Verdict:
    """What a trial has shown."""

    evidence: Evidence
    findings: list[Finding]
    recoveries: list[Recovery]
    seconds: float
    folder: Path
    """Logs and side effects; removed by `discard`."""

    def discard(self) -> None:
        """Remove what was kept."""
        shutil.rmtree(self.folder, ignore_errors=True)


def run_trial(plan: Plan, ground: Ground, conditions: Conditions) -> Verdict:
    """Carry a plan out and judge it. Leaves nothing running; its folder is the caller's to discard."""
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix=f"orcheo-dispatch-faults-seed-{plan.seed}-"))
    try:
        evidence = _carry_out(plan, ground, conditions, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    findings = check(evidence)
    recoveries = [recovery_of(fault, evidence.history) for fault in evidence.injected]
    keep(evidence, findings, folder)
    return Verdict(evidence, findings, recoveries, time.monotonic() - began, folder)


def _carry_out(plan: Plan, ground: Ground, conditions: Conditions, folder: Path) -> Evidence:
    side_effects = folder / "side-effects"
    with ExitStack() as stack:
        database = stack.enter_context(ground.database())
        broker = stack.enter_context(FillableRedis(folder / "redis"))
        slots = stack.enter_context(EmbeddedRedis(folder / "slots"))
        servers = {Server.POSTGRES: database.dsn, Server.REDIS: broker.url, Server.SLOTS: slots.url}
        links = stack.enter_context(Links(process_names(conditions.system), servers, folder / "proxy.log"))
        workload = stack.enter_context(
            closing(
                Workload(
                    plan,
                    ground.workflow,
                    dsn=database.dsn,
                    broker=broker.url,
                    slots=slots.url,
                    calls=calls_in(folder),
                    only_pushed=conditions.system is System.STOCK,
                )
            )
        )
        supervisor = Supervisor(
            units(
                conditions.system,
                conditions.execution,
                pace=plan.pace,
                lost_runs=conditions.lost_runs,
                links=links,
                folder=folder,
                side_effects=side_effects,
            ),
            folder,
        )
        injector = Injector(supervisor, links, ground.postgres, broker)
        with supervisor:
            supervisor.wait_until_at_work()
            resumes = conditions.lost_runs == RESUME
            if resumes:
                # Workers have made the tables of checkpoints.
                with psycopg.connect(database.dsn, autocommit=True) as connection:
                    stored_steps.install(connection)
            with workload.arriving() as (began, stopping):
                injector.run(plan.faults, began, stopping)
            wait_for_rest(database, workload, conditions.system)
        runs, ledger, history = read_tables(database.dsn)
        stored = _read_stored(database) if resumes else []
        return Evidence(
            plan=plan,
            lost_runs=conditions.lost_runs,
            fenced=conditions.system is System.OURS,
            runs=runs,
            ledger=ledger,
            history=history,
            notes=read_notes(side_effects),
            injected=injector.injected,
            exits=supervisor.exits,
            cancelled=workload.cancelled,
            slots_leaked=workload.slots_leaked(),
            logs=read_logs(supervisor.logs()),
            secrets=(workload.marker, str(urlsplit(database.dsn).password)),
            executions=stored_steps.read_executions(executions_beside(side_effects)),
            stored=stored,
            operations=read_operations(calls_in(folder), runs, ledger),
        )


def _read_stored(database: Database) -> list[stored_steps.Stored]:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        return stored_steps.read_stored(connection)


def wait_for_rest(database: Database, workload: Workload, system: System) -> None:
    """Return when every run has ended and every slot is back, or when it is clear that they never will."""
    deadline = time.monotonic() + _REST_SECONDS
    ended = time.monotonic()
    before, since = -1, time.monotonic()
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        while time.monotonic() < deadline:
            row = connection.execute(_UNREST).fetchone()
            assert row is not None
            # A run that was cancelled before any claim is in no ledger yet, but its slot is counted.
            if row[0] == row[1] == workload.slots_leaked() == 0:
                return
            if row[0] == 0:
                deadline = min(deadline, ended + _SLOTS_SECONDS)
            else:
                ended = time.monotonic()
            if row[2] != before:
                before, since = row[2], time.monotonic()
            elif system is System.STOCK and time.monotonic() - since > _STILL_SECONDS:
                return
            time.sleep(_LOOK_SECONDS)


def keep(evidence: Evidence, findings: list[Finding], folder: Path) -> None:
    """Write the tables beside the logs."""
    tables: dict[str, list[Any]] = {
        "runs": list(evidence.runs.values()),
        "ledger": list(evidence.ledger.values()),
        "moves": evidence.history.moves,
        "statuses": evidence.history.statuses,
        "faults": evidence.injected,
        "exits": evidence.exits,
        "findings": findings,
        "stored": evidence.stored,
    }
    for name, rows in tables.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(_plain(row), default=str) + "\n" for row in rows))


def _plain(row: Any) -> Any:
    return asdict(row) if is_dataclass(row) and not isinstance(row, type) else row
