"""Spans of a run of a real workflow: its nodes are events, and what they got and gave is in none."""

from __future__ import annotations

import httpx
import pytest

from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from tests.support.orcheo.orcheo_stack import ended, stack_beside, start_afresh, upload
from tests.support.processes.processes import until
from tests.support.servers.collector import Received, collecting

_TRACE, _SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
_BRANCHES = {"name": "Ada", "nested": "xylophone", "count": 3, "items": [f"xylophone {n}" for n in range(100)]}


@pytest.fixture(scope="module")
def spans(orcheo: OrcheoApi) -> tuple[dict[str, dict[str, Received]], list[bytes]]:
    """Return the spans of three runs, by workflow and name, and all that was exported."""
    start_afresh(orcheo)
    workflows = upload(orcheo, greet="greet", branches="branches", fail="fail")
    stack = stack_beside(orcheo)
    with collecting() as collector:
        stack.environment |= collector.variables
        with stack.running("dispatcher"), stack.running("worker"):
            bodies = {"greet": {"name": "Ada"}, "branches": _BRANCHES, "fail": {"name": "Ada"}}
            runs = {name: _fire(orcheo, workflows[name], body) for name, body in bodies.items()}
            for run_id in runs.values():
                ended(orcheo, {"id": run_id})
            until(lambda: all(len(collector.of(run_id)) == 5 for run_id in runs.values()), what="five spans each")
    return {name: collector.of(run_id) for name, run_id in runs.items()}, collector.bodies


def test_finished_nodes_are_events_of_the_execution(
    spans: tuple[dict[str, dict[str, Received]], list[bytes]],
) -> None:
    by_run, _ = spans
    execute = by_run["greet"]["execute"]
    assert execute.events == ["start"]
    assert execute.begin <= execute.event_times[0] <= execute.end
    # The first 128 would say how it began; the last ones say how it ended.
    execute = by_run["branches"]["execute"]
    assert execute.events[-3:] == ["each", "body", "each"]
    assert len(execute.events) == 128
    # start, inside, inner, many, and 100 times each and body, and each once more.
    assert execute.events_left_out == 4 + 201 - 128
    assert execute.event_times == sorted(execute.event_times)


def test_failed_run_says_so_without_its_error(spans: tuple[dict[str, dict[str, Received]], list[bytes]]) -> None:
    by_run, _ = spans
    assert by_run["fail"]["execute"].failed
    assert by_run["fail"]["settle"].attributes["orcheo.run.outcome"] == "failed"


def test_execution_links_to_the_caller_of_the_webhook(
    spans: tuple[dict[str, dict[str, Received]], list[bytes]],
) -> None:
    by_run, _ = spans
    for of_run in by_run.values():
        assert of_run["execute"].links == [(_TRACE, _SPAN)]


def test_nothing_of_inputs_outputs_and_errors_is_exported(
    spans: tuple[dict[str, dict[str, Received]], list[bytes]],
) -> None:
    _, bodies = spans
    for secret in (b"Ada", b"xylophone", b"hello", b"no luck"):
        assert not any(secret in body for body in bodies)


def _fire(orcheo: OrcheoApi, workflow_id: str, body: object) -> str:
    url = f"{orcheo.url}/api/workflows/{workflow_id}/triggers/webhook"
    answer = httpx.post(url, json=body, headers={"traceparent": f"00-{_TRACE}-{_SPAN}-01"}, timeout=60)
    assert answer.status_code == 202
    run_id: str = answer.json()["id"]
    return run_id
