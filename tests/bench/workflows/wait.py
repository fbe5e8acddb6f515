"""Waits for five seconds."""

from langgraph.graph import END, StateGraph
from orcheo.graph.state import State
from orcheo.nodes.logic import DelayNode


def build() -> StateGraph:
    """Return the graph."""
    graph = StateGraph(State)
    graph.add_node("start", DelayNode(name="start", duration_seconds=5))
    graph.set_entry_point("start")
    graph.add_edge("start", END)
    return graph
