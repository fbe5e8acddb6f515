"""A workflow of five steps, each of which notes every execution; the fourth does what the run's inputs say."""

import asyncio
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, StateGraph
from orcheo.graph.state import State
from orcheo.nodes.base import TaskNode

_STEP_SECONDS = 0.2


class Step(TaskNode):
    """Notes its execution; in runs that take a while, it takes a while too."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Do it."""
        _note(self.name, config)
        await asyncio.sleep(_STEP_SECONDS if state["inputs"]["seconds"] else 0)
        return {}


class ActingStep(TaskNode):
    """Does what `inputs["do"]` says."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Do it."""
        # Here, for the API that takes the workflow in does not know the tests.
        from tests.faults import acts

        _note(self.name, config)
        return {"result": await acts.act(config["configurable"]["thread_id"], state["inputs"])}


def _note(name: str, config: RunnableConfig) -> None:
    from tests.faults import acts

    acts.note_execution(config["configurable"]["thread_id"], name, config["metadata"])


def build() -> StateGraph:
    """Return the graph: one step, two in parallel, the act, and one more."""
    graph = StateGraph(State)
    for name in ("first", "left", "right", "last"):
        graph.add_node(name, Step(name=name))
    graph.add_node("act", ActingStep(name="act"))
    graph.set_entry_point("first")
    for name in ("left", "right"):
        graph.add_edge("first", name)
    graph.add_edge(["left", "right"], "act")
    graph.add_edge("act", "last")
    graph.add_edge("last", END)
    return graph
