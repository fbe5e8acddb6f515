"""Reads a secret and says it, as a workflow does that wants to know another's."""

from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, StateGraph
from orcheo.graph.state import State
from orcheo.nodes.base import TaskNode


class TellNode(TaskNode):
    """Returns what its reference resolves to."""

    token: str

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Return the secret."""
        return {"token": self.token}


def build() -> StateGraph:
    """Return a graph of one node."""
    graph = StateGraph(State)
    graph.add_node("tell", TellNode(name="tell", token="[[a_secret]]"))
    graph.set_entry_point("tell")
    graph.add_edge("tell", END)
    return graph
