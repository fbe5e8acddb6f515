"""The chain as a graph of LangGraph, for LangGraph's server and for Aegra."""

from typing import Any, TypedDict

from chain_step import STEPS, execute
from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    """What the steps share."""

    log: str
    done: int


def _step(number: int) -> Any:
    async def step(state: State) -> State:
        await execute(state["log"], number)
        return {"done": number}

    return step


_graph = StateGraph(State)
for _number in range(1, STEPS + 1):
    _graph.add_node(f"step_{_number}", _step(_number))
_graph.add_edge(START, "step_1")
for _number in range(1, STEPS):
    _graph.add_edge(f"step_{_number}", f"step_{_number + 1}")
_graph.add_edge(f"step_{STEPS}", END)
graph = _graph.compile()
