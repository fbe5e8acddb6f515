"""Has an effect outside the database: it appends its run to a file, and who executed it."""

import os
from pathlib import Path
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, StateGraph
from orcheo.graph.state import State
from orcheo.nodes.base import TaskNode


class AppendNode(TaskNode):
    """Appends a line."""

    path: str

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Append the run's id and the id of this process, in one write."""
        with Path(self.path).open("a") as file:
            file.write(f"{config['configurable']['thread_id']} {os.getpid()}\n")
        return {"done": True}


def build() -> StateGraph:
    """Return a graph of one node."""
    graph = StateGraph(State)
    graph.add_node("append", AppendNode(name="append", path="{{inputs.body.path}}"))
    graph.set_entry_point("append")
    graph.add_edge("append", END)
    return graph
