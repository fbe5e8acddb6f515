"""Eight steps, one after the other, that say when they began."""

import time
from itertools import pairwise
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, StateGraph
from orcheo.graph.state import State
from orcheo.nodes.base import TaskNode
from orcheo.nodes.registry import NodeMetadata, registry

_NAMES = [f"step_{number}" for number in range(1, 9)]


@registry.register(NodeMetadata(name="BenchStep", description="Says when it began.", category="bench"))
class Step(TaskNode):
    """Does nothing else."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Return the time, in seconds since 1970."""
        return {"began": time.time()}


def build() -> StateGraph:
    """Return the graph."""
    graph = StateGraph(State)
    for name in _NAMES:
        graph.add_node(name, Step(name=name))
    graph.set_entry_point(_NAMES[0])
    for one, next_one in pairwise(_NAMES):
        graph.add_edge(one, next_one)
    graph.add_edge(_NAMES[-1], END)
    return graph
