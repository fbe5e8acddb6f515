"""A workflow of one node, which does what the run's inputs say."""

from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, StateGraph
from orcheo.graph.state import State
from orcheo.nodes.base import TaskNode


class ActingNode(TaskNode):
    """Does what `inputs["do"]` says."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Do it."""
        # Here, for the API that takes the workflow in does not know the tests.
        from tests.neighbours import acts

        return {"result": await acts.act(state["inputs"])}


def build() -> StateGraph:
    """Return the graph."""
    graph = StateGraph(State)
    graph.add_node("act", ActingNode(name="act"))
    graph.set_entry_point("act")
    graph.add_edge("act", END)
    return graph
