"""Graphs of steps that fail or ask, as often as files of their folder say."""

from pathlib import Path
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, StateGraph
from langgraph.types import interrupt
from orcheo.graph.state import State
from orcheo.nodes.base import TaskNode
from orcheo.nodes.logic import HumanInputNode


class Step(TaskNode):
    """Notes in `log` of the webhook's folder that it begins; raises the error that the file `fail-NAME` names."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Return the name of the step."""
        folder = Path(state["inputs"]["body"]["folder"])
        with (folder / "log").open("a", encoding="utf-8") as log:
            log.write(f"{self.name}\n")
        fails = folder / f"fail-{self.name}"
        if fails.exists():
            raise {"ValueError": ValueError, "SyntaxError": SyntaxError}[fails.read_text()]("it fails on purpose")
        return {"done": self.name}


class Asking(TaskNode):
    """Asks a person twice."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Return both answers."""
        first = interrupt("the first question")
        return {"answers": [first, interrupt("the second question")]}


def failing() -> StateGraph:
    """Three steps."""
    graph = StateGraph(State)
    for name in ("a", "b", "c"):
        graph.add_node(name, Step(name=name))
    graph.set_entry_point("a")
    graph.add_edge("a", "b")
    graph.add_edge("b", "c")
    graph.add_edge("c", END)
    return graph


def asking() -> StateGraph:
    """A step, a question by Orcheo's own node, a step."""
    graph = StateGraph(State)
    graph.add_node("a", Step(name="a"))
    graph.add_node("ask", HumanInputNode(name="ask", prompt="What now?"))
    graph.add_node("c", Step(name="c"))
    graph.set_entry_point("a")
    graph.add_edge("a", "ask")
    graph.add_edge("ask", "c")
    graph.add_edge("c", END)
    return graph


def asking_twice() -> StateGraph:
    """One step with two questions."""
    graph = StateGraph(State)
    graph.add_node("ask", Asking(name="ask"))
    graph.set_entry_point("ask")
    graph.add_edge("ask", END)
    return graph


def asking_at_once() -> StateGraph:
    """Two questions in parallel branches, then a step."""
    graph = StateGraph(State)
    graph.add_node("a", Step(name="a"))
    for name in ("left", "right"):
        graph.add_node(name, HumanInputNode(name=name, prompt=name))
        graph.add_edge("a", name)
        graph.add_edge(name, "c")
    graph.add_node("c", Step(name="c"))
    graph.set_entry_point("a")
    graph.add_edge("c", END)
    return graph
