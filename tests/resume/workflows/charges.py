"""Graphs of steps that post to an API that honours `Idempotency-Key`, one entrypoint per shape.

The steps a and m are Orcheo's own HTTP node, with the key in a template; the others are nodes in Python.
"""

import itertools
from typing import Any

import httpx
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, StateGraph
from langgraph.types import Send
from orcheo.graph.state import State
from orcheo.nodes.base import TaskNode
from orcheo.nodes.connectors import HttpRequestNode

_SECONDS = 60.0


class Charge(TaskNode):
    """Posts with the key of its step."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Return what the API has answered."""
        execution = config["configurable"]["orcheo_dispatch"]
        headers = {"Idempotency-Key": execution["idempotency_key"], "Attempt": f"attempt {execution['attempt']}"}
        async with httpx.AsyncClient(timeout=_SECONDS) as client:
            answer = await client.post(f"{state['inputs']['body']['url']}/{self.name}", headers=headers)
        return {"json": answer.json()}


def _http(name: str, path: str | None = None) -> HttpRequestNode:
    return HttpRequestNode(
        name=name,
        method="POST",
        url=f"{{{{inputs.body.url}}}}/{path or name}",
        headers={
            "Idempotency-Key": "{{config.configurable.orcheo_dispatch.idempotency_key}}",
            "Attempt": "attempt {{config.configurable.orcheo_dispatch.attempt}}",
        },
        json_body={"run": "{{config.configurable.orcheo_dispatch.run_id}}"},
        timeout=_SECONDS,
    )


def _add(graph: StateGraph, *names: str) -> StateGraph:
    for name in names:
        graph.add_node(name, _http(name) if name == "a" else Charge(name=name))
    return graph


def _chained(graph: StateGraph, *names: str) -> StateGraph:
    graph.set_entry_point(names[0])
    for one, next_one in itertools.pairwise(names):
        graph.add_edge(one, next_one)
    graph.add_edge(names[-1], END)
    return graph


def chain() -> StateGraph:
    """One after the other."""
    names = ("a", "b", "c")
    return _chained(_add(StateGraph(State), *names), *names)


def loop() -> StateGraph:
    """The same step three times, then another."""
    graph = _add(StateGraph(State), "a", "b")
    graph.set_entry_point("a")
    graph.add_conditional_edges("a", lambda state: "a" if state["node_results"]["a"]["json"]["number"] < 3 else "b")
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
    """A graph of two steps as the second of three."""
    graph = _add(StateGraph(State), "b", "d")
    inner = _chained(_add(StateGraph(State), "a", "c"), "a", "c").compile()
    graph.add_node("inside", inner)
    return _chained(graph, "b", "inside", "d")


def unstored() -> StateGraph:
    """The same, where LangGraph stores nothing of the graph within: it starts from the beginning."""
    graph = _add(StateGraph(State), "b", "d")
    inner = _chained(_add(StateGraph(State), "a", "c"), "a", "c").compile(checkpointer=False)
    graph.add_node("inside", inner)
    return _chained(graph, "b", "inside", "d")


def mapped() -> StateGraph:
    """One node for each of three items, at once."""
    graph = _add(StateGraph(State), "start", "join")
    graph.add_node("m", _http("m", "m{{inputs.item}}"))
    graph.set_entry_point("start")
    graph.add_conditional_edges(
        "start",
        lambda state: [Send("m", {**state, "inputs": {**state["inputs"], "item": item}}) for item in range(3)],
        ["m"],
    )
    graph.add_edge("m", "join")
    graph.add_edge("join", END)
    return graph
