"""Decide how runs have ended, and which run to blame if a runner died or stopped answering.

A run that was alone in its runner is the cause. If there were several, each is a suspect, and so is every run that the
process executed before: a run may leave something behind that harms others after its end. The next run of each suspect
is alone; a run that does harm again is convicted, all others are innocent. Attempts that a run lost because of others
do not count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from orcheo_dispatch.worker.execution import Execution, How, Result, Stop
from orcheo_dispatch.worker.frames import Ended
from orcheo_dispatch.worker.isolation import Isolation
from orcheo_dispatch.worker.runners.runner import Runner

_TOGETHER_SECONDS = 0.1
_SAID_BY_RUNNERS = {How.SUCCEEDED, How.WAITING, How.FAILED, How.REJECTED, How.STOPPED}
"""Workflows can write to their runner's socket, so ends that cost no attempt are never accepted from there."""


def result_of(runner: Runner, execution: Execution, frame: Ended, *, max_output: int) -> Result:
    """Return how a run ended, as its runner reports; a run that was stopped before counts as stopped."""
    stop = execution.stop_reason
    if is_excused(runner, execution) and holder_of(runner) is not execution:
        error = f"Run timed out after {execution.timeout:g} s in an event loop that another run blocked."
        return Result(How.SUSPECTED, error=error, kind="LoopHeld")
    how = How(frame.how) if frame.how in _SAID_BY_RUNNERS else How.FAILED
    output = frame.output.decode(errors="replace") if frame.output is not None else None
    if output is not None and len(output) > max_output:
        # The runner reports this in text, unless its workflows have changed it.
        return Result(How.FAILED, kind="output_too_large", stop=stop)
    return Result(
        how,
        output=output,
        error=frame.error,
        kind=frame.kind,
        at=frame.at,
        fault=frame.fault,
        checkpoint_id=frame.checkpoint_id,
        interrupts=frame.interrupts,
        stop=stop,
    )


def judge(
    runner: Runner, ended: Sequence[Execution], isolation: Isolation, *, innocent: bool
) -> Iterator[tuple[Execution, Result]]:
    """Yield how each of the runs ended that were in a runner when it ended.

    `innocent` is True if the runner ended because this process is closing.
    """
    why = f"{runner.exit_text()} in the middle of the run."
    others = f"{why} {len(ended)} runs were in it." if len(ended) > 1 else why
    # In a shared runner whose loop was blocked, something that an ended run left behind may be the cause.
    alone = len(ended) == 1 and (runner.dedicated or not runner.held)
    if ended and not alone and runner.culprit is None and not innocent:
        suspect(runner, isolation)
    for execution in ended:
        if innocent:
            yield execution, Result(How.LOST, error=why, kind="RunnerLost")
        elif runner.lost_its_server:
            # All runners ended with it, and any run in any of them may be the cause. A suspect that is alone is charged
            # an attempt: otherwise a run that kills the fork server would be retried without end.
            pays = runner.dedicated and execution.run.suspect
            suspect(runner, isolation)
            yield execution, Result(How.CRASHED if pays else How.SUSPECTED, error=others, kind="RunnerLost")
        elif runner.culprit is not None and runner.culprit is not execution:
            yield execution, Result(How.LOST, error=why, kind="RunnerLost")
        elif alone or runner.culprit is execution:
            isolation.convict(execution.run, "ended its runner")
            yield execution, Result(How.CRASHED, error=why, kind="RunnerEnded")
        else:
            yield execution, Result(How.SUSPECTED, error=others, kind="RunnerEnded")


def is_excused(runner: Runner, execution: Execution) -> bool:
    """Return whether a run timed out while its event loop was blocked, which another run may have caused."""
    return runner.held and execution.stop_reason is Stop.TIMED_OUT


def holder_of(runner: Runner) -> Execution | None:
    """Return the run that blocks the event loop of a runner, if it is known."""
    held, executions = runner.held_by, runner.executions
    if held is not None and held.key is not None:
        # Also None if something that an ended run left behind blocks the loop.
        return executions.get(held.key)
    return next(iter(executions.values())) if len(executions) == 1 and runner.was_in_order_before else None


class CancelledTogether:
    """Runs whose tasks were cancelled by code in their runner: a single run by itself, several runs by one of them.

    For the thread of the pool's event loop.
    """

    def __init__(self, isolation: Isolation, *, end: Callable[[Runner, Execution, Result], None]) -> None:
        self._isolation = isolation
        self._end = end

    def add(self, runner: Runner, execution: Execution) -> None:
        """Wait briefly to see whether other runs were cancelled too, then end it."""
        runner.cancelled_inside.append(execution)
        if len(runner.cancelled_inside) == 1:
            asyncio.get_running_loop().call_later(_TOGETHER_SECONDS, self._judge, runner)

    def _judge(self, runner: Runner) -> None:
        cancelled = [each for each in runner.cancelled_inside if each.result is None]
        runner.cancelled_inside.clear()
        if len(cancelled) == 1:
            if runner.dedicated:
                self._isolation.convict(cancelled[0].run, "cancelled tasks of its event loop")
            itself = Result(How.FAILED, error="the workflow cancelled itself", kind="CancelledError")
            self._end(runner, cancelled[0], itself)
        elif cancelled:
            runner.draining = True
            suspect(runner, self._isolation)
            for execution in cancelled:
                error = "Run was cancelled by the code of a run in its runner."
                self._end(runner, execution, Result(How.SUSPECTED, error=error))


def suspect(runner: Runner, isolation: Isolation) -> None:
    """Suspect all runs that a shared runner has executed."""
    for run in runner.executed.values():
        isolation.suspect(run)
