"""Graphs of steps that note when they begin and end, and wait for as long as a file tells them to.

Ingested by the API as the script of a workflow, one entrypoint per shape.
"""

import asyncio
import itertools
from pathlib import Path
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, StateGraph
from langgraph.types import interrupt
from orcheo.graph.state import State
from orcheo.nodes.base import TaskNode


class Step(TaskNode):
    """Notes in `log` of the folder that the webhook names when it begins and ends; waits while `hold-NAME-N` exists."""

    fails: int = 0
    """Number of times that it fails."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Return how often this step has been passed in this run."""
        folder = Path(state["inputs"]["body"]["folder"])
        times = int(((state.get("node_results") or {}).get(self.name) or {}).get("times", 0)) + 1
        self._note(folder, f"begin {self.name} {times}")
        while (folder / f"hold-{self.name}-{times}").exists():
            await asyncio.sleep(0.02)
        self._note(folder, f"end {self.name} {times}")
        return {"times": times}

    def _note(self, folder: Path, line: str) -> None:
        with (folder / "log").open("a", encoding="utf-8") as log:
            log.write(f"{line}\n")


class Asking(TaskNode):
    """Waits for a person."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Stop the run until somebody answers."""
        return {"answer": interrupt("what now?")}


def _add(graph: StateGraph, *names: str) -> StateGraph:
    for name in names:
        graph.add_node(name, Step(name=name))
    return graph


def _chained(graph: StateGraph, *names: str) -> StateGraph:
    graph.set_entry_point(names[0])
    for one, next_one in itertools.pairwise(names):
        graph.add_edge(one, next_one)
    graph.add_edge(names[-1], END)
    return graph


def chain() -> StateGraph:
    """One after the other."""
    names = ("a", "b", "c", "d")
    return _chained(_add(StateGraph(State), *names), *names)


def loop() -> StateGraph:
    """The same step four times, then another."""
    graph = _add(StateGraph(State), "a", "b")
    graph.set_entry_point("a")
    graph.add_conditional_edges("a", lambda state: "a" if state["node_results"]["a"]["times"] < 4 else "b")
    graph.add_edge("b", END)
    return graph


def branches() -> StateGraph:
    """Three at once, then one."""
    graph = _add(StateGraph(State), "start", "a", "b", "c", "join")
    graph.set_entry_point("start")
    for name in ("a", "b", "c"):
        graph.add_edge("start", name)
        graph.add_edge(name, "join")
    graph.add_edge("join", END)
    return graph


def subgraph() -> StateGraph:
    """A graph of three steps as the second of three."""
    inner = ("b", "c", "d")
    graph = _add(StateGraph(State), "a", "e")
    graph.add_node("inside", _chained(_add(StateGraph(State), *inner), *inner).compile())
    return _chained(graph, "a", "inside", "e")


def asking() -> StateGraph:
    """One step, then a person is asked."""
    graph = _add(StateGraph(State), "a", "c")
    graph.add_node("b", Asking(name="b"))
    return _chained(graph, "a", "b", "c")
