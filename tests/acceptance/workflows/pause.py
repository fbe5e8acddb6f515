"""Takes a step, then waits for half a minute."""

from langgraph.graph import END, StateGraph
from orcheo.graph.state import State
from orcheo.nodes.logic import DelayNode, SetVariableNode


def build() -> StateGraph:
    """Return the graph."""
    graph = StateGraph(State)
    graph.add_node("first", SetVariableNode(name="first", variables={"begun": True}))
    graph.add_node("wait", DelayNode(name="wait", duration_seconds=30))
    graph.set_entry_point("first")
    graph.add_edge("first", "wait")
    graph.add_edge("wait", END)
    return graph
