"""Liveness means progress: a process that is up and does nothing fixes itself, or ends for its service manager."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from orcheo_dispatch.ops.sandbox.child import free_port
from orcheo_dispatch.ops.sandbox.embedded import EmbeddedRedis
from orcheo_dispatch.shared.health.probe import ask
from tests.support.database.databases import Database
from tests.support.database.runs import everything, insert_runs, read_run
from tests.support.processes.processes import Process, Stack, until
from tests.support.processes.wedges import DEAFEN, WEDGE


def _ended(database: Database) -> int:
    return len(everything(database, "SELECT FROM workflow_runs WHERE status IN ('succeeded', 'failed', 'cancelled')"))


def test_worker_that_has_stopped_consuming_gets_a_new_connection(database: Database, stack: Stack) -> None:
    with stack.running("dispatcher"), _breakable(stack) as worker:
        insert_runs(database)
        until(lambda: _ended(database) == 1, what="the worker executes runs")
        worker.signal(DEAFEN)
        insert_runs(database, 3)
        until(lambda: _ended(database) == 4, what="the others end", seconds=30)
        assert "stalled what=consumer" in worker.log
        assert "remedy=restart_connection" in worker.log
        assert "remedy=give_up" not in worker.log


def test_worker_whose_consumer_hangs_ends_with_nothing_left_to_save(database: Database, stack: Stack) -> None:
    with (
        # The one message that Redis has sent to the worker that hangs is lost with it.
        stack.running("dispatcher", ORCHEO_DISPATCH_LEASE="5"),
        _breakable(stack) as worker,
    ):
        insert_runs(database)
        until(lambda: _ended(database) == 1, what="the worker executes runs")
        worker.signal(WEDGE)
        insert_runs(database, 3)
        assert worker.exit_code() == 1
        assert "remedy=give_up" in worker.log
        with stack.running("worker"):
            until(lambda: _ended(database) == 4, what="another worker executes the others")


@contextmanager
def _breakable(stack: Stack) -> Iterator[Process]:
    with Process(["-m", "tests.support.processes.wedges"], stack.environment_of("worker")) as worker:
        worker.saw(" ready.")
        yield worker


@pytest.mark.parametrize("isolation", ["adaptive", "process"])
def test_run_that_holds_its_loop_is_ended_and_costs_nobody_anything(
    database: Database, stack: Stack, isolation: str
) -> None:
    (blocker,) = insert_runs(database, inputs={"do": "block", "seconds": 3600})
    with (
        stack.running("dispatcher"),
        stack.running("worker", ORCHEO_WORKER_RUN_TIMEOUT="4", ORCHEO_WORKER_ISOLATION=isolation) as worker,
    ):
        until(lambda: stack.noted("begun") == [blocker], what="the run begins")
        worker.saw("loop_blocked")
        line = next(line for line in worker.lines if "loop_blocked" in line)
        assert f"run_id={blocker}" in line
        assert "executors.py" in line
        (other,) = insert_runs(database)
        until(lambda: read_run(database, other)["status"] == "succeeded", what="another run is executed", seconds=3)
        until(lambda: read_run(database, blocker)["status"] == "failed", what="the blocker times out")
        assert read_run(database, blocker)["payload"]["error"] == "Run timed out after 4 s."
        (after,) = insert_runs(database)
        until(lambda: read_run(database, after)["status"] == "succeeded", what="the next run is executed")
        assert "exit" not in worker.log
    assert stack.noted("begun") == [blocker, other, after]


def test_beat_that_has_stopped_ticking_ends(stack: Stack) -> None:
    with Process(["-m", "tests.support.processes.wedged_beat"], stack.environment) as beat:
        beat.saw("beat_started")
        assert beat.exit_code() == 1
        assert "exit_stalled" in beat.log


def test_processes_are_back_within_seconds_of_redis_and_say_so_once(
    database: Database, redis_server: EmbeddedRedis, tmp_path: Path
) -> None:
    stack = Stack(database, redis_server.url, tmp_path / "side-effects")
    ports = {kind: free_port() for kind in ("beat", "dispatcher", "worker")}
    with (
        stack.running("beat", ORCHEO_HEALTH_PORT=str(ports["beat"])) as beat,
        stack.running("dispatcher", ORCHEO_HEALTH_PORT=str(ports["dispatcher"])) as dispatcher,
        stack.running("worker", ORCHEO_HEALTH_PORT=str(ports["worker"])) as worker,
    ):
        processes = (beat, dispatcher, worker)
        insert_runs(database)
        until(lambda: _ended(database) == 1, what="the first run ends")
        for kind, port in ports.items():
            until(lambda port=port: ask("127.0.0.1", port, "/readyz")[0], what=f"{kind} is ready")  # type: ignore[misc]
        redis_server.kill()
        insert_runs(database)
        for process in processes:
            process.saw("broker_unavailable")
        for kind in ("dispatcher", "worker"):
            until(lambda port=ports[kind]: "Redis" in ask("127.0.0.1", port, "/readyz")[1], what=kind)  # type: ignore[misc]
            assert not ask("127.0.0.1", ports[kind], "/readyz")[0], kind
            # Nothing that a restart would mend.
            assert ask("127.0.0.1", ports[kind], "/livez")[0]
        # Long enough for any backoff to grow.
        until(lambda: worker.log.count("role=consumer") >= 1, what="the worker says so")
        beaten = everything(database, "SELECT now() + interval '12 seconds' AS at")[0]["at"]
        until(lambda: everything(database, "SELECT now() > %s AS over", beaten)[0]["over"], what="twelve seconds")
        redis_server.start()
        until(lambda: _ended(database) == 2, what="the second run ends", seconds=5)
        for process in processes:
            process.saw("broker_reconnected")
        for kind, port in ports.items():
            until(lambda port=port: ask("127.0.0.1", port, "/readyz")[0], what=f"{kind} is ready")  # type: ignore[misc]
        assert "orcheo_dispatch_broker_errors_total 0" not in ask("127.0.0.1", ports["dispatcher"], "/metrics")[1]
        for process in processes:
            noisy = [line for line in process.lines if "broker_unavailable" in line]
            assert len(noisy) <= 2, noisy
            assert "Traceback" not in process.log
            process.signal(signal.SIGTERM)
            assert process.exit_code() == 0


def test_redis_that_refuses_to_write_is_outlasted(
    database: Database, redis_server: EmbeddedRedis, tmp_path: Path
) -> None:
    """Its disk is full, or it has become a replica: it can be connected to, and answers with errors."""

    stack = Stack(database, redis_server.url, tmp_path / "side-effects")
    with stack.running("beat") as beat, stack.running("dispatcher") as dispatcher, stack.running("worker") as worker:
        with redis.Redis.from_url(redis_server.url) as client:
            client.execute_command("REPLICAOF", "127.0.0.1", "1")
            client.config_set("replica-serve-stale-data", "yes")
            for process in (beat, worker, dispatcher):
                if process is not dispatcher:
                    process.saw("broker_unavailable")
            insert_runs(database)
            dispatcher.saw("broker_unavailable")
            client.execute_command("REPLICAOF", "NO", "ONE")
        until(lambda: _ended(database) == 1, what="the run ends", seconds=10)
        worker.saw("broker_reconnected")
        for process in (beat, dispatcher, worker):
            assert len([line for line in process.lines if "broker_unavailable" in line]) <= 3, process.log
