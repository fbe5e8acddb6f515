"""The thread that stops runs at their timeout: it works while there are runs, and sleeps while there are none."""

from __future__ import annotations

import time
from collections.abc import Iterator

from orcheo_dispatch.shared.ledger.runs import Run
from orcheo_dispatch.worker.deadlines import LOOK_SECONDS, Deadlines
from orcheo_dispatch.worker.execution import Execution, Executions, Stop


class _Counted(Executions):
    """Counts how often it is looked through."""

    looks = 0

    def __iter__(self) -> Iterator[Execution]:
        self.looks += 1
        return super().__iter__()


def _execution(run_id: str, timeout: float, stopped: list[str]) -> Execution:
    return Execution(
        Run(run_id, 1, 1, "workflow", "version", "workspace", "webhook", {}, {}),
        begun_at=time.monotonic(),
        timeout=timeout,
        on_stop=lambda execution: stopped.append(execution.run.run_id),
        on_ignored=lambda execution: stopped.append(f"{execution.run.run_id} ignored"),
        on_end=lambda _: None,
    )


def test_it_looks_at_nothing_while_there_are_no_runs() -> None:
    executions = _Counted(4)
    deadlines = Deadlines(executions, grace=1.0)
    deadlines.start()
    time.sleep(10 * LOOK_SECONDS)
    assert executions.looks <= 1
    stopped: list[str] = []
    late = _execution("late", 3600.0, stopped)
    executions.add([late, _execution("early", 0.0, stopped)], reserved=0)
    while not stopped:
        time.sleep(LOOK_SECONDS)
    executions.remove(list(executions))
    assert stopped == ["early"]
    looks = executions.looks
    time.sleep(10 * LOOK_SECONDS)
    assert executions.looks <= looks + 2
    deadlines.stop()


def test_each_of_several_spells_of_work_has_its_deadlines() -> None:
    executions = _Counted(4)
    deadlines = Deadlines(executions, grace=0.2)
    deadlines.start()
    stopped: list[str] = []
    for spell in range(3):
        time.sleep(2 * LOOK_SECONDS)
        executions.add([_execution(f"run {spell}", 0.1, stopped)], reserved=0)
        while not stopped or stopped[-1] != f"run {spell} ignored":
            time.sleep(LOOK_SECONDS)
        assert next(iter(executions)).stop_reason is Stop.TIMED_OUT
        executions.remove(list(executions))
    assert stopped == [text for spell in range(3) for text in (f"run {spell}", f"run {spell} ignored")]
    deadlines.stop()


def test_it_stops_while_there_are_no_runs_and_before_its_first_look() -> None:
    for pause in (0.0, 3 * LOOK_SECONDS):
        deadlines = Deadlines(_Counted(1), grace=1.0)
        deadlines.start()
        time.sleep(pause)
        # Waits for the thread.
        deadlines.stop()
