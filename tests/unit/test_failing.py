"""Which errors are the platform's, and when so many of them make a worker not ready."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from orcheo_dispatch.worker.execution import How, Result, Stop
from orcheo_dispatch.worker.executor.protocol import Run, RunRejectedError
from orcheo_dispatch.worker.runner.faults import fault_of
from orcheo_dispatch.worker.settle.failing import STREAK_RUNS, Failing

_UNDEFINED = "raise LookupError('Ada')"


def _passing(*modules: str, error: str = _UNDEFINED) -> BaseException:
    """Return an error that was raised in the last of these modules, called from the one before, and so on."""
    call: Callable[[], Any] | None = None
    for module in reversed(modules):
        scope: dict[str, Any] = {"__name__": module, "call": call}
        exec(compile(f"def step():\n    {'call()' if call else error}\n", f"/lib/{module}.py", "exec"), scope)
        call = cast("Callable[[], Any]", scope["step"])
    assert call is not None
    try:
        call()
    except BaseException as raised:
        # Without the frame of this test, which is none of a worker's.
        return raised.with_traceback(raised.__traceback__.tb_next if raised.__traceback__ else None)
    raise AssertionError("nothing was raised")


def _from(cause: BaseException, *modules: str) -> BaseException:
    error = _passing(*modules)
    error.__cause__ = cause
    return error


def _result(error: BaseException | None, stop: Stop | None = None) -> Result:
    if error is None:
        return Result(How.SUCCEEDED, output="{}")
    return Result(How.FAILED, fault=fault_of(error), stop=stop)


def _run(workflow_id: str = "one") -> Run:
    return Run("run", 1, 1, workflow_id, "version", "a", "webhook", {}, {})


_PLATFORM = _passing(
    "orcheo_dispatch.worker.execution",
    "orcheo_dispatch.worker.orcheo.executor",
    "orcheo_dispatch.worker.orcheo.postgres",
    "psycopg.cursor_async",
)
_DEFINITION = _passing(
    "orcheo_dispatch.worker.execution", "orcheo_dispatch.worker.orcheo.workflow", "orcheo.graph.builder"
)
_WORKFLOW = _passing(
    "orcheo_dispatch.worker.execution",
    "orcheo_dispatch.worker.orcheo.executor",
    "langgraph.pregel.main",
    "orcheo.nodes.logic",
)


@pytest.mark.parametrize(
    "error",
    [
        _WORKFLOW,
        _passing("orcheo_dispatch.worker.execution", "langgraph.pregel.main", "a_script"),
        _passing("orcheo_dispatch.worker.execution", "langgraph.pregel.main", "a_script", "psycopg.cursor"),
        _passing("orcheo_dispatch.worker.execution", "langgraph.pregel.main", "orcheo.nodes.mongodb", "asyncio.tasks"),
        _passing("orcheo_dispatch.worker.executor.protocol", "somebodys.executor"),
        _from(
            _passing("orcheo.graph.ingestion.loader", "a_script"),
            "orcheo_dispatch.worker.execution",
            "orcheo.graph.builder",
        ),
        RunRejectedError("archived"),
        ValueError("raised nowhere"),
    ],
    ids=str,
)
def test_error_of_a_workflow_is_no_fault(error: BaseException) -> None:
    assert fault_of(error) is None


def test_limit_of_langgraph_that_a_workflow_reaches_is_no_fault() -> None:
    error = "raise type('GraphRecursionError', (RecursionError,), {'__module__': 'langgraph.errors'})()"
    assert fault_of(_passing("orcheo_dispatch.worker.execution", "langgraph.pregel.main", error=error)) is None


@pytest.mark.parametrize(
    ("error", "at", "certain"),
    [
        (_PLATFORM, "/lib/orcheo_dispatch.worker.orcheo.postgres.py:2 step", True),
        (_DEFINITION, "/lib/orcheo.graph.builder.py:2 step", False),
        (
            _passing("orcheo_dispatch.worker.execution", "langgraph.pregel._loop"),
            "/lib/langgraph.pregel._loop.py:2 step",
            True,
        ),
        (
            _passing("orcheo_dispatch.worker.orcheo.executor", "json.decoder"),
            "/lib/orcheo_dispatch.worker.orcheo.executor.py:2 step",
            True,
        ),
    ],
    ids=["database", "definition", "langgraph", "ours"],
)
def test_fault_of_the_platform_names_class_and_place_alone(error: BaseException, at: str, certain: bool) -> None:
    fault = fault_of(error)
    assert fault is not None
    assert (fault.error, fault.at, fault.certain) == ("LookupError", at, certain)


def test_runs_that_fail_of_one_fault_are_told_until_one_succeeds() -> None:
    failing = Failing()
    for _ in range(STREAK_RUNS - 1):
        failing.note(_run(), _result(_PLATFORM))
        assert failing.why is None
    failing.note(_run(), _result(_PLATFORM))
    assert failing.why == (
        f"the last {STREAK_RUNS} runs failed with LookupError at /lib/orcheo_dispatch.worker.orcheo.postgres.py:2 step"
    )
    failing.note(_run(), _result(_WORKFLOW))
    assert failing.why is not None
    failing.note(_run(), _result(None))
    assert failing.why is None


@pytest.mark.parametrize("other", [_WORKFLOW, _DEFINITION, None], ids=["workflow", "another fault", "success"])
def test_anything_between_begins_the_count_anew(other: BaseException | None) -> None:
    failing = Failing()
    for _ in range(2):
        for _ in range(STREAK_RUNS - 1):
            failing.note(_run(), _result(_PLATFORM))
        failing.note(_run(), _result(other))
    assert failing.why is None


def test_run_that_was_stopped_counts_for_nothing() -> None:
    failing = Failing()
    for _ in range(STREAK_RUNS):
        failing.note(_run(), _result(_PLATFORM, Stop.TIMED_OUT))
        failing.note(_run(), _result(_PLATFORM))
    assert failing.why is not None


def test_fault_that_may_be_one_workflows_needs_two_of_them() -> None:
    failing = Failing()
    for _ in range(3 * STREAK_RUNS):
        failing.note(_run("one"), _result(_DEFINITION))
    assert failing.why is None
    failing.note(_run("two"), _result(_DEFINITION))
    assert failing.why is not None
