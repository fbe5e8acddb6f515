"""What becomes of runs whose runner has ended: the table in `docs/reliability.md`, row by row."""

from __future__ import annotations

import os
import time
from signal import Signals
from uuid import uuid4

import psutil
import pytest

from orcheo_dispatch.ops.sandbox.child import free_port
from orcheo_dispatch.shared.health.probe import ask
from tests.support.database.databases import Database
from tests.support.database.runs import all_ended, everything, insert_runs, ledger, read_run
from tests.support.processes.processes import Stack, until

_CRASH = "Runner ended by signal 11 (SIGSEGV) in the middle of the run."
_ENDS = [
    ("segmentation fault", _CRASH, "signal"),
    ("os._exit(3)", "Runner exited with status 3 in the middle of the run.", "exited"),
]


@pytest.fixture
def playing(stack: Stack) -> Stack:
    """Processes whose runs do what `tests.neighbours.acts` offers, those of a workspace in one runner."""
    stack.environment |= {"ORCHEO_WORKER_EXECUTOR": "tests.neighbours.acts:play", "ORCHEO_WORKER_PROCESSES": "1"}
    return stack


def _error(database: Database, run_id: str) -> str:
    error: str = read_run(database, run_id)["payload"]["error"]
    return error


def _insert(database: Database, do: str, count: int = 1) -> list[str]:
    """Insert runs of a workflow version of their own."""
    return insert_runs(database, count, version_id=str(uuid4()), inputs={"do": do, "seconds": 4})


def _begin_beside(database: Database, do: str) -> tuple[list[str], str]:
    """Have three runs wait in a runner, then one that does this; return them."""
    neighbours = _insert(database, "wait", 3)
    until(lambda: all(read_run(database, each)["status"] == "running" for each in neighbours), what="they wait")
    (guilty,) = _insert(database, do)
    return neighbours, guilty


def _fork_server_of(worker: int) -> int:
    """Return the process that makes the runners of a worker."""
    children = psutil.Process(worker).children()
    return next(int(each.pid) for each in children if "multiprocessing.forkserver" in " ".join(each.cmdline()))


def _attempts(database: Database, run_id: str) -> tuple[int, int]:
    row = ledger(database, run_id)
    return row["attempts"], row["refunded"]


@pytest.mark.parametrize(("do", "why", "how"), _ENDS)
def test_run_that_ends_its_runner_alone_fails_with_what_ended_it(
    database: Database, playing: Stack, do: str, why: str, how: str
) -> None:
    port = free_port()
    playing.environment |= {"ORCHEO_DISPATCH_LOST_RUNS": "fail"}
    with playing.running("dispatcher"), playing.running("worker", ORCHEO_HEALTH_PORT=str(port)) as worker:
        (guilty,) = _insert(database, do)
        until(lambda: all_ended(database), what="it has ended")
        counted = ask("127.0.0.1", port, "/metrics")[1]
        assert f'orcheo_dispatch_runners_lost_total{{how="{how}"}} 1.0' in counted
        assert (read_run(database, guilty)["status"], _error(database, guilty)) == ("failed", why)
        worker.saw("workflow_isolated")
    assert "runner_ended" in worker.log


def test_under_fail_all_runs_of_a_runner_fail_with_it(database: Database, playing: Stack) -> None:
    playing.environment |= {"ORCHEO_DISPATCH_LOST_RUNS": "fail"}
    with playing.running("dispatcher"), playing.running("worker") as worker:
        neighbours, guilty = _begin_beside(database, "segmentation fault")
        until(lambda: all_ended(database), what="all have ended")
        assert {ledger(database, each)["outcome"] for each in (*neighbours, guilty)} == {"lost"}
        assert {_error(database, each) for each in (*neighbours, guilty)} == {f"{_CRASH} 4 runs were in it."}
        # The worker is none the worse for it.
        (later,) = _insert(database, "echo")
        until(lambda: read_run(database, later)["status"] == "succeeded", what="the next run succeeds")
    assert worker.log.count("worker_started") == 1


def test_under_requeue_the_others_succeed_and_the_guilty_is_convicted(database: Database, playing: Stack) -> None:
    playing.environment |= {"ORCHEO_DISPATCH_LOST_RUNS": "requeue"}
    with playing.running("dispatcher"), playing.running("worker"):
        neighbours, guilty = _begin_beside(database, "segmentation fault")
        until(lambda: all_ended(database), what="all have ended")
        assert {read_run(database, each)["status"] for each in neighbours} == {"succeeded"}
        assert {_attempts(database, each) for each in neighbours} == {(2, 1)}
        # One attempt beside others is refunded, three are alone.
        assert (read_run(database, guilty)["status"], _error(database, guilty)) == ("failed", _CRASH)
        assert _attempts(database, guilty) == (4, 1)
        convicted = until(
            lambda: everything(database, "SELECT reason, times FROM orcheo_dispatch.isolated_workflows"),
            what="the conviction is written",
        )
        assert [row["reason"] for row in convicted] == ["ended its runner"]


def test_under_shared_and_requeue_the_attempts_of_the_guilty_are_bounded(database: Database, playing: Stack) -> None:
    playing.environment |= {"ORCHEO_DISPATCH_LOST_RUNS": "requeue", "ORCHEO_WORKER_ISOLATION": "shared"}
    with playing.running("dispatcher"), playing.running("worker"):
        neighbours, guilty = _begin_beside(database, "segmentation fault")
        until(lambda: all_ended(database), what="all have ended")
        assert {_attempts(database, each) for each in neighbours} == {(2, 1)}
        assert (read_run(database, guilty)["status"], _attempts(database, guilty)) == ("failed", (4, 1))


def test_innocent_in_a_dedicated_runner_pays_nothing_for_the_end_of_the_fork_server(
    database: Database, playing: Stack
) -> None:
    playing.environment |= {"ORCHEO_DISPATCH_LOST_RUNS": "requeue", "ORCHEO_WORKER_ISOLATION": "process"}
    with playing.running("dispatcher"), playing.running("worker") as worker:
        neighbours = _insert(database, "wait", 3)
        until(lambda: all(read_run(database, each)["status"] == "running" for each in neighbours), what="they wait")
        os.kill(_fork_server_of(worker.pid), Signals.SIGKILL)
        until(lambda: all_ended(database), what="all have ended")
        assert {read_run(database, each)["status"] for each in neighbours} == {"succeeded"}
        # Some may not have been in a runner yet.
        attempts = {_attempts(database, each) for each in neighbours}
        assert (2, 1) in attempts
        assert attempts <= {(1, 0), (2, 1)}


def test_under_requeue_the_end_of_the_fork_server_is_nobodys_conviction(database: Database, playing: Stack) -> None:
    playing.environment |= {"ORCHEO_DISPATCH_LOST_RUNS": "requeue"}
    with playing.running("dispatcher"), playing.running("worker") as worker:
        neighbours, guilty = _begin_beside(database, "kill the parent")
        until(lambda: all_ended(database), what="all have ended", seconds=60)
        # Beside others it cost nobody an attempt; alone it is tried again as often as any other.
        assert {_attempts(database, each)[1] for each in (*neighbours, guilty)} == {1}
        assert (read_run(database, guilty)["status"], _attempts(database, guilty)[0]) == ("failed", 4)
        assert _error(database, guilty) == "Runner exited with status 255 in the middle of the run."
        (later,) = _insert(database, "echo")
        until(lambda: read_run(database, later)["status"] == "succeeded", what="the next run succeeds")
    assert "workflow_isolated" not in worker.log
    assert worker.log.count("worker_started") == 1


def test_under_hold_the_others_are_left_for_an_operator(database: Database, playing: Stack) -> None:
    playing.environment |= {"ORCHEO_DISPATCH_LOST_RUNS": "hold"}
    with playing.running("dispatcher"), playing.running("worker") as worker:
        neighbours, guilty = _begin_beside(database, "segmentation fault")
        worker.saw("runner_ended")
        (later,) = _insert(database, "echo")
        until(lambda: read_run(database, later)["status"] == "succeeded", what="the next run succeeds")
        assert {read_run(database, each)["status"] for each in (*neighbours, guilty)} == {"running"}


def test_under_process_nobody_is_concerned(database: Database, playing: Stack) -> None:
    with playing.running("dispatcher"), playing.running("worker", ORCHEO_WORKER_ISOLATION="process"):
        neighbours, guilty = _begin_beside(database, "segmentation fault")
        until(lambda: all_ended(database), what="all have ended")
        assert {read_run(database, each)["status"] for each in neighbours} == {"succeeded"}
        assert {_attempts(database, each) for each in neighbours} == {(1, 0)}
        assert _error(database, guilty) == _CRASH


def test_run_that_ignores_its_stop_has_no_effect_after_its_end_under_process(database: Database, stack: Stack) -> None:
    with (
        stack.running("dispatcher"),
        stack.running("worker", ORCHEO_WORKER_ISOLATION="process", ORCHEO_WORKER_RUN_TIMEOUT="1") as worker,
    ):
        (stubborn,) = insert_runs(database, inputs={"do": "swallow", "seconds": 8})
        until(lambda: read_run(database, stubborn)["status"] == "failed", what="it times out")
        assert stack.noted("swallowed") == [stubborn]
        # Run after run: had the code gone on, it would have ended by then.
        for _ in range(6):
            insert_runs(database, inputs={"do": "wait", "seconds": 1.5})
            until(lambda: all_ended(database), what="the next run ends")
        assert stubborn not in stack.noted("ended")
    assert f"run_ignored_stop run_id={stubborn}" in worker.log


@pytest.mark.parametrize("do", ["clock stopped", "block later"])
def test_runner_that_an_ended_run_left_stuck_is_given_no_more_runs(database: Database, playing: Stack, do: str) -> None:
    with playing.running("dispatcher"), playing.running("worker") as worker:
        insert_runs(database, version_id=str(uuid4()), inputs={"do": do})
        until(lambda: all_ended(database), what="it has ended")
        worker.saw("loop_blocked")
        if do == "block later":
            # Whose callback it is can be seen; who replaced a clock cannot.
            worker.saw('reason="held its event loop"')
        later = _insert(database, "wait", 3)
        until(lambda: all_ended(database), what="the next runs have ended")
        assert {ledger(database, each)["outcome"] for each in later} == {"succeeded"}
        assert {_attempts(database, each) for each in later} == {(1, 0)}


@pytest.mark.parametrize("do", ["clock stopped", "block"])
def test_run_that_times_out_in_a_stuck_event_loop_is_tried_again_alone(
    database: Database, playing: Stack, do: str
) -> None:
    playing.environment |= {"ORCHEO_DISPATCH_LOST_RUNS": "requeue", "ORCHEO_WORKER_RUN_TIMEOUT": "5"}
    with playing.running("dispatcher"), playing.running("worker"):
        neighbours, _ = _begin_beside(database, do)
        until(lambda: all_ended(database), what="all have ended")
        assert {read_run(database, each)["status"] for each in neighbours} == {"succeeded"}
        assert {attempts - refunded for attempts, refunded in (_attempts(database, each) for each in neighbours)} == {1}


def test_run_beside_what_an_ended_run_left_behind_is_neither_failed_nor_convicted(
    database: Database, playing: Stack
) -> None:
    playing.environment |= {"ORCHEO_DISPATCH_LOST_RUNS": "requeue", "ORCHEO_WORKER_RUN_TIMEOUT": "5"}
    with playing.running("dispatcher"), playing.running("worker") as worker:
        (guilty,) = _insert(database, "block in 4 s")
        until(lambda: all_ended(database), what="it has ended")
        time.sleep(1.5)  # So that its runner has answered, and the next run begins in one that is in order.
        (innocent,) = _insert(database, "wait")
        worker.saw("loop_blocked")
        until(lambda: all_ended(database), what="the next run has ended")
        assert (read_run(database, innocent)["status"], _attempts(database, innocent)) == ("succeeded", (2, 1))
        assert f"loop_blocked run_id={guilty}" in worker.log
        assert worker.log.count("workflow_isolated") == 1
