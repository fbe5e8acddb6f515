"""The workflow of the demo, uploaded with `orcheo workflow upload`: greets the name in the webhook."""

from langgraph.graph import END, StateGraph
from orcheo.graph.state import State
from orcheo.nodes.logic import SetVariableNode


def build():
    """Return the graph."""
    graph = StateGraph(State)
    graph.add_node("start", SetVariableNode(name="start", variables={"greeting": "hello {{inputs.body.name}}"}))
    graph.set_entry_point("start")
    graph.add_edge("start", END)
    return graph
