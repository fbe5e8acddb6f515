"""Fails after its first node, with what it was given in the text of its error."""

from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, StateGraph
from orcheo.graph.state import State
from orcheo.nodes.base import TaskNode
from orcheo.nodes.logic import SetVariableNode


class FailingNode(TaskNode):
    """Fails."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Raise an error that quotes the input."""
        raise ValueError(f"no luck, {state['inputs']['body']['name']}")


def build() -> StateGraph:
    """Return the graph."""
    graph = StateGraph(State)
    graph.add_node("start", SetVariableNode(name="start", variables={"seen": "{{inputs.body.name}}"}))
    graph.add_node("fail", FailingNode(name="fail"))
    graph.set_entry_point("start")
    graph.add_edge("start", "fail")
    graph.add_edge("fail", END)
    return graph
