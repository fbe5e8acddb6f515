"""One trial: start everything on its host, let the load and the scenario run their course, wait for rest, and judge."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from tests.faults.checker import Finding, check
from tests.faults.evidence import Evidence, read_logs, read_notes, read_operations, read_tables
from tests.faults.history import TERMINAL
from tests.faults.links import Server
from tests.faults.plan import Plan
from tests.faults.supervisor import Supervisor, Unit
from tests.faults.system import Execution, System, calls_in, units
from tests.faults.trial import keep, wait_for_rest
from tests.faults.workload import Workflow, Workload
from tests.hosts.network import Network
from tests.hosts.scenarios import API, DISPATCHERS, HOSTS, WORKERS, Scenario
from tests.hosts.servers import Servers, Template
from tests.support.database.databases import Database
from tests.support.database.runs import VERSION_ID, WORKFLOW_ID, WORKSPACE_ID
from tests.upgrade.load import make_load

BEFORE_SECONDS, AFTER_SECONDS = 4.0, 4.0
"""Of load before the trouble and after it."""
_PROMOTED_AFTER_SECONDS = 3.0
_RUNS_PER_SECOND = 5.0
_NAMES = (*WORKERS, *DISPATCHERS, "beat-0", "beat-1")


@dataclass(frozen=True)
class Verdict:
    """What a trial has shown."""

    scenario: Scenario
    lost_runs: str
    evidence: Evidence
    findings: list[Finding]
    ended_meanwhile: int
    """Runs that ended during the trouble."""
    rest_seconds: float
    """From the end of the load until the last run had ended and the last slot was back."""
    seconds: float
    folder: Path
    """Logs and tables; removed by `discard`."""

    @property
    def claims(self) -> Counter[str]:
        """Return what became of the claims."""
        return Counter(str(move.outcome) for move in self.evidence.history.moves if move.sign == "settled")

    def discard(self) -> None:
        """Remove what was kept."""
        shutil.rmtree(self.folder, ignore_errors=True)


class _Addresses:
    """The servers' addresses, which are the same for each process."""

    def __init__(self, servers: Servers) -> None:
        self._urls = {
            Server.POSTGRES: servers.dsn,
            Server.REDIS: servers.broker,
            Server.SLOTS: servers.slots,
        }

    def url(self, process: str, server: Server) -> str:
        """Return the server's URL as this process is to see it."""
        return self._urls[server]


def run_trial(scenario: Scenario, template: Template, *, seed: int, lost_runs: str | None = None) -> Verdict:
    """Carry a scenario out and judge it. Leaves nothing running; its folder is the caller's to discard."""
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="orcheo-dispatch-hosts-"))
    policy = lost_runs or scenario.lost_runs
    load = make_load(seed, seconds=BEFORE_SECONDS + scenario.seconds + AFTER_SECONDS, per_second=_RUNS_PER_SECOND)
    with ExitStack() as stack:
        network = stack.enter_context(Network(HOSTS, folder / "disturber.log"))
        stack.enter_context(network.on(API))
        servers = stack.enter_context(Servers(network, template, folder))
        workload = stack.enter_context(
            closing(
                Workload(
                    load,
                    Workflow(WORKFLOW_ID, VERSION_ID, WORKSPACE_ID),
                    dsn=servers.dsn,
                    broker=servers.broker,
                    slots=servers.slots,
                    calls=calls_in(folder),
                    only_pushed=False,
                )
            )
        )
        supervisor = Supervisor(_units(servers, network, load, policy, folder), folder)
        with supervisor:
            supervisor.wait_until_at_work()
            with workload.arriving():
                times = _carry_out(scenario, network, servers)
            loaded = time.monotonic()
            wait_for_rest(Database("", servers.dsn), workload, System.OURS)
            rest_seconds = time.monotonic() - loaded
        runs, ledger, history = read_tables(servers.dsn)
        evidence = Evidence(
            plan=load,
            lost_runs=policy,
            fenced=True,
            runs=runs,
            ledger=ledger,
            history=history,
            operations=read_operations(calls_in(folder), runs, ledger),
            notes=read_notes(folder / "side-effects"),
            injected=[],
            exits=supervisor.exits,
            cancelled=workload.cancelled,
            slots_leaked=workload.slots_leaked(),
            logs=read_logs(supervisor.logs()),
            secrets=(workload.marker, str(urlsplit(servers.dsn).password)),
        )
    findings = check(evidence)
    keep(evidence, findings, folder)
    ended = sum(1 for each in history.statuses if each.after in TERMINAL and times[0] < each.at < times[1])
    return Verdict(scenario, policy, evidence, findings, ended, rest_seconds, time.monotonic() - began, folder)


def _units(servers: Servers, network: Network, load: Plan, lost_runs: str, folder: Path) -> list[Unit]:
    """Return our processes, each on its host; a Beat is on its dispatcher's."""
    made = units(
        System.OURS,
        Execution.PLAY,
        pace=load.pace,
        lost_runs=lost_runs,
        links=_Addresses(servers),
        folder=folder,
        side_effects=folder / "side-effects",
        names=_NAMES,
    )
    return [replace(each, command=network.command(_host_of(each.name), each.command)) for each in made]


def _host_of(process: str) -> str:
    return process.replace("beat", "dispatcher")


def _carry_out(scenario: Scenario, network: Network, servers: Servers) -> tuple[float, float]:
    """Do what the scenario says; return from when to when there was trouble, by the clock of the machine."""
    time.sleep(BEFORE_SECONDS)
    began = time.time()
    network.cut(scenario.cuts)
    if scenario.disturbed:
        network.disturb(scenario.disturbed, delay=scenario.delay, loss=scenario.loss)
    if scenario.promotes:
        time.sleep(_PROMOTED_AFTER_SECONDS)
        servers.promote()
    time.sleep(max(0.0, began + scenario.seconds - time.time()))
    if scenario.promotes:
        servers.primary.kill()
    ended = time.time()
    network.heal()
    time.sleep(AFTER_SECONDS)
    return began, ended
