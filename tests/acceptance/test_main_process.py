"""The main process of a worker has imported neither Orcheo nor anything else that executes workflow code."""

from __future__ import annotations

from pathlib import Path

from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from tests.support.orcheo.orcheo_stack import ended, stack_beside, start_afresh, upload
from tests.support.processes.processes import Process, until
from tests.support.processes.wedges import LIST_MODULES, MODULES

_OF_RUNNERS = (
    "orcheo_dispatch.worker.runner",
    "orcheo_dispatch.worker.orcheo",
    "orcheo_dispatch.worker.executor.protocol",
)
_OF_WORKFLOWS = {"orcheo", "orcheo_backend", "orcheo_sdk", "langgraph", "langchain", "langchain_core", "greet"}
_PLUGINS = {"logfire"}
_OF_TRACES = {"orcheo_dispatch.shared.traces.export", "opentelemetry.sdk.trace", "opentelemetry.exporter"}
"""Traces are off. redis-py imports other parts of OpenTelemetry where they are installed."""


def test_main_process_has_imported_nothing_that_executes_workflows(orcheo: OrcheoApi, tmp_path: Path) -> None:
    start_afresh(orcheo)
    greet = upload(orcheo, greet="greet")["greet"]
    stack, listed = stack_beside(orcheo), tmp_path / "modules"
    with (
        stack.running("dispatcher"),
        Process(
            ["-m", "tests.support.processes.wedges"], stack.environment_of("worker", **{MODULES: str(listed)})
        ) as worker,
    ):
        worker.saw(" ready.")
        (run,) = orcheo.fire_webhooks(greet, [{"name": "Ada"}])
        assert ended(orcheo, run)["status"] == "succeeded"
        worker.signal(LIST_MODULES)
        until(listed.exists, what="the worker has listed its modules")
    modules = listed.read_text().split()
    assert {
        "orcheo_dispatch.worker.runtime",
        "orcheo_dispatch.worker.runners.pool",
        "orcheo_dispatch.worker.books.books",
    } <= set(modules)
    assert [name for name in modules if name.partition(".")[0] in _OF_WORKFLOWS | _PLUGINS] == []
    assert [name for name in modules if f"{name}.".startswith(tuple(f"{each}." for each in _OF_RUNNERS))] == []
    assert _OF_TRACES & set(modules) == set()
