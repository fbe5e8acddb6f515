"""The chain as a workflow of Orcheo, for its own worker and for orcheo-dispatch."""

from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, StateGraph
from orcheo.graph.state import State
from orcheo.nodes.base import TaskNode

_STEPS = 5


class Step(TaskNode):
    """A step of the chain."""

    number: int

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Execute it."""
        # Here, for the API that takes the workflow in does not know the module.
        from chain_step import execute

        await execute(state["inputs"]["body"]["log"], self.number)
        return {"done": self.number}


def build() -> StateGraph:
    """Return the graph."""
    graph = StateGraph(State)
    for number in range(1, _STEPS + 1):
        graph.add_node(f"step_{number}", Step(name=f"step_{number}", number=number))
    graph.set_entry_point("step_1")
    for number in range(1, _STEPS):
        graph.add_edge(f"step_{number}", f"step_{number + 1}")
    graph.add_edge(f"step_{_STEPS}", END)
    return graph
