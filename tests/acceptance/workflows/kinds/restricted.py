"""A workflow of the restricted mode: never executed, its code node runs in a WebAssembly sandbox."""

from orcheo.graph import END, START, StateGraph
from orcheo.graph.state import State
from orcheo.nodes.data import CodeNode
from orcheo.nodes.logic import SetVariableNode


class ScoreNode(CodeNode):
    """Counts the vowels of a word."""

    word: str = "{{inputs.body.name}}"
    fail: str = "{{inputs.body.fail}}"

    def run(self, state, config):
        """Count them."""
        if self.fail == "yes":
            raise ValueError("no score for " + self.word)
        count = 0
        for letter in self.word.lower():
            if letter in "aeiou":
                count += 1
        return {"score": count, "many": count > 1, "keys": sorted(state["inputs"])}


def orcheo_workflow() -> StateGraph:
    """Return the graph."""
    graph = StateGraph(State)
    graph.add_node("score", ScoreNode(name="score"))
    graph.add_node("high", SetVariableNode(name="high", variables={"is": "high"}))
    graph.add_node("low", SetVariableNode(name="low", variables={"is": "low"}))
    graph.add_edge(START, "score")
    graph.add_conditional_edges(
        "score",
        {"path": "node_results.score.many", "mapping": {"true": "high", "false": "low"}, "default": "low"},
    )
    graph.add_edge("high", END)
    graph.add_edge("low", END)
    return graph
