"""The units of a booted systemd do what `ops/systemd` says they do."""

from __future__ import annotations

import re

import pytest

from tests.support.database.databases import Database
from tests.support.database.runs import all_are, insert_runs, read_run
from tests.systemd.host import API, BEAT, DISPATCHER, OURS, TARGET, UNITS, WORKERS, Host, until

_LIMITS = {BEAT: 2.0, DISPATCHER: 2.0, WORKERS[0]: 3.0, API: 3.0}
_EXPOSURE = re.compile(r"Overall exposure level for \S+: (?P<level>[0-9.]+)")
# A minute would do in earnest; a test does not want to wait for it.
_RUNNERS = 4
"""Shared ones and the one for cron, at most."""
_QUICK_WATCHDOG = ("WatchdogSec=4", "TimeoutAbortSec=2", "RestartSec=1")


@pytest.mark.parametrize("unit", [*(f"{name}.service" for name in _LIMITS), TARGET])
def test_unit_is_verified_in_silence(host: Host, unit: str) -> None:
    assert host.box.run("systemd-analyze", "verify", unit) == ""


@pytest.mark.parametrize(("unit", "limit"), _LIMITS.items())
def test_unit_is_exposed_no_more_than_it_has_to_be(host: Host, unit: str, limit: float) -> None:
    printed = host.box.run("systemd-analyze", "security", "--no-pager", f"{unit}.service")
    found = _EXPOSURE.search(printed)
    assert found is not None, printed
    assert float(found["level"]) <= limit, printed


def test_all_start_and_execute_runs_with_secrets_in_credentials_alone(host: Host, database: Database) -> None:
    host.start(*OURS)
    insert_runs(database, 20)
    until(lambda: all_are(database, "succeeded"), what="the runs succeed")
    # Both workers share one base port in worker.env's place: each has its own above it.
    ports = {**host.ports, WORKERS[0]: 9471, WORKERS[1]: 9472}
    # A worker is ready with its first heartbeat, seconds after its start; until then `health` ends with 1.
    for unit in OURS:
        until(
            lambda port=ports[unit]: host.health(port, expect=None) == {"live": True, "ready": True},  # type: ignore[misc]
            what=f"{unit} is ready",
        )
        assert host.show(unit, "StatusText") in {"ticking", "polling", "runs: 0 of 32"}
        pid = host.pid(unit)
        environment = host.box.run("cat", f"/proc/{pid}/environ")
        assert "CREDENTIALS_DIRECTORY" in environment
        shown = host.systemctl("show", unit)
        for secret in host.secrets.values():
            assert secret not in environment
            assert secret not in shown
    journal = host.journal()
    assert "Traceback" not in journal
    assert not any(secret in journal for secret in host.secrets.values())
    # And nobody else reads the files.
    for name in host.secrets:
        assert host.box.run("stat", "--format", "%U %a", f"/etc/orcheo-dispatch/credentials/{name}") == "root 600\n"


@pytest.mark.parametrize("unit", [BEAT, DISPATCHER, WORKERS[0]])
def test_killed_process_is_back(host: Host, unit: str) -> None:
    host.start(unit)
    dead = host.pid(unit)
    host.kill(unit, "KILL")
    host.comes_back(unit, dead)
    assert host.show(unit, "NRestarts") == "1"


@pytest.mark.parametrize("unit", [BEAT, DISPATCHER, WORKERS[0]])
def test_process_that_hangs_is_killed_by_the_watchdog_and_back(host: Host, unit: str) -> None:
    host.drop_in(unit, *_QUICK_WATCHDOG)
    host.start(unit)
    dead = host.pid(unit)
    host.kill(unit, "STOP")
    host.comes_back(unit, dead)
    assert "watchdog" in host.journal(unit).lower()


def test_process_that_gets_on_is_left_alone_by_the_watchdog(host: Host, database: Database) -> None:
    for unit in OURS:
        host.drop_in(unit, *_QUICK_WATCHDOG)
    host.start(*OURS)
    pids = {unit: host.pid(unit) for unit in OURS}
    insert_runs(database, inputs={"do": "wait", "seconds": 12})
    until(lambda: all_are(database, "succeeded"), what="a run of three watchdogs' time succeeds")
    assert {unit: host.pid(unit) for unit in OURS} == pids


def test_worker_hangs_and_is_back_without_the_runners_of_before(host: Host, database: Database) -> None:
    unit = WORKERS[0]
    host.configure(ORCHEO_WORKER_PROCESSES="2")
    host.drop_in(unit, *_QUICK_WATCHDOG)
    host.start(BEAT, DISPATCHER, unit)
    insert_runs(database, 4)
    until(lambda: all_are(database, "succeeded"), what="the runs succeed")
    dead = host.pid(unit)
    host.kill(unit, "STOP")
    host.comes_back(unit, dead)
    insert_runs(database, 4)
    until(lambda: all_are(database, "succeeded"), what="the runs of the new process succeed")
    assert len(host.box.run("pgrep", "--full", "multiprocessing.forkserver").split()) <= _RUNNERS + 1


@pytest.mark.parametrize("isolation", ["adaptive", "process"])
def test_stop_lets_a_run_finish(host: Host, database: Database, isolation: str) -> None:
    host.configure(ORCHEO_WORKER_ISOLATION=isolation, ORCHEO_WORKER_CONCURRENCY="2", ORCHEO_WORKER_DRAIN_TIMEOUT="30")
    # The drain is longer than the unit allows: the worker says so itself.
    host.drop_in(WORKERS[0], "TimeoutStopSec=2")
    host.start(BEAT, DISPATCHER, WORKERS[0])
    (run,) = insert_runs(database, inputs={"do": "wait", "seconds": 8})
    until(lambda: read_run(database, run)["status"] == "running", what="the run begins")
    host.systemctl("stop", WORKERS[0])
    assert read_run(database, run)["status"] == "succeeded"
    # By then systemd has forgotten the instance, but for its journal.
    journal = host.journal(WORKERS[0])
    assert f"{WORKERS[0]}.service: Deactivated successfully." in journal
    assert "timed out" not in journal
    assert "Killing" not in journal


def test_target_starts_stops_and_restarts_all(host: Host) -> None:
    host.systemctl("enable", *OURS, TARGET)
    host.start(TARGET)
    until(lambda: all(host.show(unit, "ActiveState") == "active" for unit in OURS), what="all are active")
    pids = {host.pid(unit) for unit in OURS}
    host.systemctl("restart", TARGET)
    until(lambda: all(host.show(unit, "ActiveState") == "active" for unit in OURS), what="all are active")
    assert not pids & {host.pid(unit) for unit in OURS}
    host.systemctl("stop", TARGET)
    until(lambda: {host.show(unit, "ActiveState") for unit in OURS} == {"inactive"}, what="all are stopped")
    assert {host.show(unit, "Result") for unit in OURS} == {"success"}
    host.start(TARGET)
    # As the runbook has it, since the target alone waits for none: what comes next may need that all have ended.
    host.systemctl("stop", TARGET, "orcheo-beat", "orcheo-dispatcher", "orcheo-worker@*")
    assert {host.show(unit, "ActiveState") for unit in OURS} == {"inactive"}


def test_what_is_enabled_is_there_after_a_boot(host: Host, database: Database) -> None:
    host.systemctl("enable", *OURS, TARGET)
    host.box.down()
    insert_runs(database, 3)
    host.box.up()
    until(lambda: all_are(database, "succeeded"), what="the runs succeed after the boot")
    for unit in OURS:
        until(lambda unit=unit: host.show(unit, "ActiveState") == "active", what=f"{unit} is active")  # type: ignore[misc]


def test_servers_that_are_away_at_the_start_are_waited_for(host: Host, database: Database) -> None:
    there = host.secrets["REDIS_URL"]
    host.secrets["REDIS_URL"] = "redis://127.0.0.1:1/0"
    host.configure()
    for unit in OURS:
        host.drop_in(unit, "RestartSec=1")
    host.systemctl("start", "--no-block", *OURS)
    for unit in OURS:
        until(lambda unit=unit: int(host.show(unit, "NRestarts")) >= 2, what=f"{unit} tries again")  # type: ignore[misc]
        assert "see REDIS_URL" in host.journal(unit)
    host.secrets["REDIS_URL"] = there
    host.configure()
    insert_runs(database, 3)
    until(lambda: all_are(database, "succeeded"), what="the runs succeed")


def test_wrong_setting_is_one_line_in_the_journal(host: Host) -> None:
    host.configure(ORCHEO_DISPATCH_LEASE="soon")
    host.systemctl("start", DISPATCHER, expect=1)
    assert "ORCHEO_DISPATCH_LEASE='soon' is invalid: expected" in host.journal(DISPATCHER)
    assert "Traceback" not in host.journal(DISPATCHER)


def test_units_on_the_host_are_replaced_only_when_asked(host: Host) -> None:
    assert host.command("units", "--write", UNITS).count(": unchanged") == 5
    host.box.run("sed", "-i", "s/^WatchdogSec=.*/WatchdogSec=7/", f"{UNITS}/orcheo-beat.service")
    said = host.command("units", "--write", UNITS, expect=1)
    assert "-WatchdogSec=7\n" in said
    host.command("units", "--write", UNITS, "--force")
    assert host.command("units", "--write", UNITS).count(": unchanged") == 5
