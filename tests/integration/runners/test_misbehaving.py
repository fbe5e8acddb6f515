"""Runs that block, hang, lie or break: each ends once, in a status that Orcheo reads, and so do its neighbours."""

from __future__ import annotations

import signal

from orcheo_dispatch.ops.sandbox.child import free_port
from orcheo_dispatch.shared.health.probe import ask
from tests.support.database.databases import Database
from tests.support.database.runs import all_are, all_ended, everything, execute, insert_runs, ledger, read_run
from tests.support.processes.processes import Stack, until


def test_runs_that_misbehave_end_in_a_status_that_orcheo_reads(database: Database, stack: Stack) -> None:
    wanted = {
        "fail": ("failed", "failed"),
        "exit": ("failed", "failed"),
        "mute": ("failed", "failed"),
        "odd": ("succeeded", "succeeded"),
        "much": ("succeeded", "succeeded"),
        "recurse": ("failed", "failed"),
    }
    runs = {do: insert_runs(database, inputs={"do": do})[0] for do in wanted}
    text = "swordfish, nul {nul} at postgresql://me:hunter2@db/x"
    (secret,) = insert_runs(database, inputs={"do": "fail", "text": text})
    (slow,) = insert_runs(database, inputs={"do": "wait", "seconds": 3600})
    (stubborn,) = insert_runs(database, inputs={"do": "swallow", "seconds": 20})
    with stack.running("worker", ORCHEO_WORKER_RUN_TIMEOUT="2") as worker, stack.running("dispatcher"):
        until(lambda: all_ended(database), what="every run is terminal")
    for do, (status, outcome) in wanted.items():
        assert read_run(database, runs[do])["status"] == status
        assert ledger(database, runs[do])["outcome"] == outcome
    odd = read_run(database, runs["odd"])["payload"]["output_payload"]["final_state"]
    assert (odd["nul"], odd["lone"], odd["nan"]) == ("a�b", "�", None)
    assert len(read_run(database, runs["much"])["payload"]["output_payload"]["final_state"]["text"]) == 5_000_000
    error = read_run(database, secret)["payload"]["error"]
    assert "hunter2" not in error
    assert "nul � at" in error
    for run_id in (slow, stubborn):
        assert read_run(database, run_id)["payload"]["error"] == "Run timed out after 2 s."
        assert ledger(database, run_id)["outcome"] == "timed_out"
    assert f"run_ignored_stop run_id={stubborn}" in worker.log
    assert "hunter2" not in worker.log
    # Neither inputs nor what an error quotes of them.
    assert "swordfish" not in worker.log
    assert "swordfish" in error


def test_loop_blocked_for_longer_than_the_lease_costs_no_run(database: Database, stack: Stack) -> None:
    """The heartbeat has a thread of its own, so the blocker and its neighbours keep their leases, and end once."""
    neighbours = insert_runs(database, 3, inputs={"do": "wait", "seconds": 0.5})
    (blocker,) = insert_runs(database, inputs={"do": "block", "seconds": 6})
    port = free_port()
    with (
        stack.running("worker", ORCHEO_HEALTH_PORT=str(port)) as worker,
        stack.running("dispatcher") as dispatcher,
    ):
        until(lambda: all_are(database, "succeeded"), what="all runs succeeded")
        worker.saw("loop_unblocked")
        metrics = ask("127.0.0.1", port, "/metrics")[1]
        assert "orcheo_dispatch_loop_blocks_total 1.0" in metrics
        assert 'orcheo_dispatch_runs_settled_total{outcome="succeeded",trigger="webhook"} 4.0' in metrics
    line = next(line for line in worker.lines if "loop_blocked" in line)
    assert f"run_id={blocker}" in line
    assert "workflow_id=" in line
    assert "executors.py" in line
    assert "run_reaped" not in dispatcher.log
    assert sorted(stack.noted("begun")) == sorted([*neighbours, blocker])
    assert {row["attempts"] for row in everything(database, "SELECT attempts FROM orcheo_dispatch.dispatch")} == {1}


def test_runs_that_use_threads_do_not_wait_for_each_others(database: Database, stack: Stack) -> None:
    insert_runs(database, 20, inputs={"do": "meet"})
    with stack.running("worker", ORCHEO_WORKER_PROCESSES="1"), stack.running("dispatcher"):
        until(lambda: all_ended(database), what="every run is terminal")
    assert all_are(database, "succeeded")


def test_run_that_takes_every_thread_times_out_and_keeps_nobody_from_stopping(database: Database, stack: Stack) -> None:
    (hog,) = insert_runs(database, inputs={"do": "hog"})
    with (
        stack.running("dispatcher"),
        stack.running("worker", ORCHEO_WORKER_RUN_TIMEOUT="2", ORCHEO_WORKER_CONCURRENCY="4") as worker,
    ):
        until(lambda: stack.noted("begun") == [hog], what="the run begins")
        (neighbour,) = insert_runs(database)
        until(lambda: read_run(database, neighbour)["status"] == "succeeded", what="its neighbour succeeds")
        until(lambda: read_run(database, hog)["status"] == "failed", what="it times out")
        worker.signal(signal.SIGTERM)
        assert worker.exit_code(seconds=20) == 0


def test_workflow_may_lower_the_timeout_of_its_runs_and_not_raise_it(database: Database, stack: Stack) -> None:
    wanted = {"lower": 1.5, "raised": 3600, "odd": "soon", "negative": -1}
    runs = {name: insert_runs(database, inputs={"do": "wait", "seconds": 3600})[0] for name in wanted}
    for name, seconds in wanted.items():
        execute(
            database,
            "UPDATE workflow_runs SET payload = jsonb_set(payload, '{runnable_config}', jsonb_build_object('metadata',"
            " jsonb_build_object('run_timeout_seconds', %s::jsonb))) WHERE id = %s",
            f'"{seconds}"' if isinstance(seconds, str) else str(seconds),
            runs[name],
        )
    with stack.running("worker", ORCHEO_WORKER_RUN_TIMEOUT="4") as worker, stack.running("dispatcher"):
        until(lambda: all_are(database, "failed"), what="all time out")
    errors = {name: read_run(database, run_id)["payload"]["error"] for name, run_id in runs.items()}
    assert errors.pop("lower") == "Run timed out after 1.5 s."
    assert set(errors.values()) == {"Run timed out after 4 s."}
    assert {ledger(database, run_id)["outcome"] for run_id in runs.values()} == {"timed_out"}
    for name in ("odd", "negative"):
        assert f"run_timeout_ignored run_id={runs[name]}" in worker.log
