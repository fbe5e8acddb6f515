"""Has a subgraph, a branch that is taken, one that is not, and a loop."""

from langgraph.graph import END, StateGraph
from orcheo.edges import Condition, IfElseEdge
from orcheo.graph.state import State
from orcheo.nodes.logic import ForLoopNode, SetVariableNode


def build() -> StateGraph:
    """Return the graph."""
    inner = StateGraph(State)
    inner.add_node("inside", SetVariableNode(name="inside", variables={"deep.er": "{{inputs.body.nested}}"}))
    inner.set_entry_point("inside")
    inner.add_edge("inside", END)

    graph = StateGraph(State)
    graph.add_node("start", SetVariableNode(name="start", variables={"name": "{{inputs.body.name}}", "none": None}))
    graph.add_node("inner", inner.compile())
    graph.add_node("few", SetVariableNode(name="few", variables={"branch": "few"}))
    graph.add_node("many", SetVariableNode(name="many", variables={"branch": "many"}))
    graph.add_node("each", ForLoopNode(name="each", items="{{inputs.body.items}}"))
    graph.add_node("body", SetVariableNode(name="body", variables={"item": "{{each.current_item}}"}))
    graph.set_entry_point("start")
    graph.add_edge("start", "inner")
    graph.add_conditional_edges(
        "inner",
        _if_else("is_many", Condition(left="{{inputs.body.count}}", operator="greater_than", right=2)),
        {"true": "many", "false": "few"},
    )
    graph.add_edge("many", "each")
    graph.add_edge("few", "each")
    graph.add_conditional_edges(
        "each",
        _if_else("is_left", Condition(left="{{each.done}}", operator="is_falsy")),
        {"true": "body", "false": END},
    )
    graph.add_edge("body", "each")
    return graph


def _if_else(name: str, condition: Condition) -> IfElseEdge:
    return IfElseEdge(name=name, conditions=[condition])
