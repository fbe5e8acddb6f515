"""The demo tells a run that continued from one that did not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orcheo_dispatch.ops.demo.observed import Ended, Execution, faults

_STEPS = ("model 1", "look_up ink", "model 2")
_ANSWER = "30 EUR"
_KILLED, _OTHER = 7, 8
_RESUMED = {"resumed": {"after_step": 1, "attempt": 1, "claim": 3}}
_GOOD = Ended(
    status="succeeded",
    answer=_ANSWER,
    executions=(
        Execution("model 1", _KILLED),
        Execution("look_up ink", _KILLED),
        Execution("look_up ink", _OTHER),
        Execution("model 2", _OTHER),
    ),
    trace=({"model": {}}, _RESUMED, {"look_up": {}}, {"model": {}}, {"status": "completed"}),
    killed_pid=_KILLED,
    in_flight="look_up ink",
)


def _faults(**changes: Any) -> list[str]:
    return faults(replace(_GOOD, **changes), steps=_STEPS, answer=_ANSWER)


def test_run_that_continued_has_no_fault() -> None:
    assert _faults() == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"status": "failed"}, "the run is failed"),
        ({"answer": "60 EUR"}, "its result is '60 EUR' instead of '30 EUR'"),
        (
            {"executions": (*_GOOD.executions, Execution("model 1", _OTHER))},
            "step 'model 1' was executed 2 times instead of 1",
        ),
        ({"executions": _GOOD.executions[:3]}, "step 'model 2' was executed 0 times instead of 1"),
        (
            {"executions": (*_GOOD.executions[:2], *_GOOD.executions[3:])},
            "step 'look_up ink' was executed 1 times instead of 2",
        ),
        (
            {"executions": (*_GOOD.executions, Execution("other", _OTHER))},
            "step 'other' was executed 1 times instead of 0",
        ),
        (
            {"executions": tuple(replace(each, pid=_KILLED) for each in _GOOD.executions)},
            "0 other workers continued the run instead of 1",
        ),
        (
            {"trace": ({"model": {}}, {"look_up": {}}, {"model": {}})},
            "the trace has the run resumed after [], and step 'look_up ink' was in flight",
        ),
        (
            {"trace": ({"model": {}}, _RESUMED, {"model": {}}, {"look_up": {}}, {"model": {}})},
            "the trace has the steps ['model', 'model', 'look_up', 'model'] instead of ['model', 'look_up', 'model']",
        ),
    ],
)
def test_run_that_did_not_continue_correctly_is_told(changes: dict[str, Any], fault: str) -> None:
    assert fault in _faults(**changes)
