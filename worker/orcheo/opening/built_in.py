"""Execute a built-in workflow twice with the code that executes runs, to check that the installed releases fit.

Twice, because the second build of a graph takes another code path than the first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Protocol
from uuid import uuid4

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.logs.lines import describe
from orcheo_dispatch.worker.books.postgres import may_pass
from orcheo_dispatch.worker.executor.outside import Outside
from orcheo_dispatch.worker.executor.payload import storable
from orcheo_dispatch.worker.executor.protocol import Output, Run, Waiting
from orcheo_dispatch.worker.orcheo.compat import LANGGRAPH_SCRIPT_FORMAT, WorkflowVersion
from orcheo_dispatch.worker.orcheo.postgres import Clock
from orcheo_dispatch.worker.orcheo.releases import REMEDY, installed
from orcheo_dispatch.worker.orcheo.saving.either import MakeSaver
from orcheo_dispatch.worker.orcheo.saving.outbox import Outbox
from orcheo_dispatch.worker.orcheo.workflow import Loaded, Version

_SOURCE = """
from langgraph.graph import END, StateGraph
from orcheo.graph.state import State
from orcheo.nodes.logic import SetVariableNode

def build():
    graph = StateGraph(State)
    variables = {"said": "{{inputs.line}}", "key": "{{config.configurable.orcheo_dispatch.idempotency_key}}"}
    graph.add_node("rehearsal", SetVariableNode(name="rehearsal", variables=variables))
    graph.set_entry_point("rehearsal")
    graph.add_edge("rehearsal", END)
    return graph
"""
_LINE = "ready"

type Perform = Callable[[Run, Loaded, Outbox, MakeSaver], Awaitable[Output]]
"""Executes a run with this outbox and a checkpointer of this function."""


class ClosingOutside(Outside, Protocol):
    """An outside that can be waited for."""

    async def close(self) -> None:
        """Wait until all rows are written."""
        ...


async def play(perform: Perform, outside: ClosingOutside, make_saver: MakeSaver, clock: Clock) -> None:
    """Execute the workflow twice. Raises `SettingsError` if it cannot be executed, and errors of servers."""
    version = Version(_built_in())
    for build in ("first", "second"):
        run = _run(version)
        outbox = Outbox(outside, run.claim)
        output = await _perform(perform, run, Loaded(version, False, False, clock), outbox, make_saver, build)
        _check_output(output, run.run_id, build)
        await outside.close()


async def _perform(
    perform: Perform,
    run: Run,
    loaded: Loaded,
    outbox: Outbox,
    make_saver: MakeSaver,
    build: str,
) -> Output:
    try:
        return await perform(run, loaded, outbox, make_saver)
    except Exception as error:
        if may_pass(error):
            raise
        told = describe(error)
        where = f"{told['error']} at {told.get('at', '?')}"
        raise SettingsError(f"the built-in workflow failed, {build} build: {where} {_releases()}") from error


def _check_output(output: Output, run_id: str, build: str) -> None:
    payload = {} if output is None or isinstance(output, Waiting) else dict(output)
    stored = json.loads(json.dumps(storable(payload), allow_nan=False))
    try:
        result = stored["final_state"]["node_results"]["rehearsal"]
        fits = result["said"] == _LINE and re.fullmatch(rf"{run_id}:[^:{{}}]+:[^:{{}}]+", result["key"])
    except (KeyError, TypeError):
        fits = False
    if not fits:
        raise SettingsError(f"the built-in workflow returned a wrong output, {build} build {_releases()}")


def _built_in() -> WorkflowVersion:
    graph = {"format": LANGGRAPH_SCRIPT_FORMAT, "source": _SOURCE, "entrypoint": "build"}
    return WorkflowVersion.model_construct(id=uuid4(), workflow_id=uuid4(), graph=graph, runnable_config=None)


def _run(version: Version) -> Run:
    return Run(
        run_id=str(uuid4()),
        fence=1,
        attempt=1,
        workflow_id=str(version.stored.workflow_id),
        workflow_version_id=str(version.stored.id),
        workspace_id=str(uuid4()),
        triggered_by="rehearsal",
        inputs={"line": _LINE},
        runnable_config={},
    )


def _releases() -> str:
    return f"({', '.join(str(release) for release in installed())}): {REMEDY}"
