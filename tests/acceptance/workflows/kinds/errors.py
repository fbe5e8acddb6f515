"""What goes wrong: before and after side effects, in branches, in subgraphs, in the script itself."""

import uuid
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph
from orcheo.edges import Condition, IfElseEdge
from orcheo.graph.state import State
from orcheo.nodes.base import TaskNode
from orcheo.nodes.connectors.http_request import HttpRequestNode
from orcheo.nodes.logic import DelayNode, SetVariableNode


class MuteError(Exception):
    """An error without a text."""


class FailingNode(TaskNode):
    """Fails with the class of its choice."""

    kind: str = "ValueError"

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Fail."""
        if self.kind == "MuteError":
            raise MuteError
        if self.kind == "KeyError":
            return {"missing": state["inputs"]["no such key"]}
        if self.kind == "ExceptionGroup":
            raise ExceptionGroup("two at once", [ValueError("one"), OSError(2, "No such file", "/nowhere")])
        if self.kind == "long":
            raise ValueError("long " * 10_000)
        raise ValueError("no luck: " + "\u00e9\u4e2d\U0001f600 {{inputs}} " * 3)


def before() -> StateGraph:
    """Return a graph that fails before it has done anything."""
    graph = StateGraph(State)
    graph.add_node("fail", FailingNode(name="fail"))
    graph.add_node("post", _post("post"))
    graph.add_edge(START, "fail")
    graph.add_edge("fail", "post")
    graph.add_edge("post", END)
    return graph


def after() -> StateGraph:
    """Return a graph that fails after two requests and a subgraph."""
    graph = StateGraph(State)
    graph.add_node("first", _post("first"))
    graph.add_node("inner", _single(SetVariableNode(name="inside", variables={"x": 1})).compile())
    graph.add_node("second", _post("second"))
    graph.add_node("fail", FailingNode(name="fail", kind="KeyError"))
    graph.add_edge(START, "first")
    graph.add_edge("first", "inner")
    graph.add_edge("inner", "second")
    graph.add_edge("second", "fail")
    graph.add_edge("fail", END)
    return graph


def in_branch() -> StateGraph:
    """Return a graph one of whose parallel branches fails while another still waits."""
    graph = StateGraph(State)
    graph.add_node("start", SetVariableNode(name="start", variables={"x": 1}))
    graph.add_node("quick", SetVariableNode(name="quick", variables={"x": 2}))
    graph.add_node("fail", FailingNode(name="fail", kind="ExceptionGroup"))
    graph.add_node("slow", DelayNode(name="slow", duration_seconds=3600))
    graph.add_node("join", SetVariableNode(name="join", variables={"x": 3}))
    graph.set_entry_point("start")
    for name in ("quick", "fail", "slow"):
        graph.add_edge("start", name)
    graph.add_edge(["quick", "fail", "slow"], "join")
    graph.add_edge("join", END)
    return graph


def in_subgraph() -> StateGraph:
    """Return a graph that fails in the second node of a subgraph."""
    inner = StateGraph(State)
    inner.add_node("good", SetVariableNode(name="good", variables={"x": 1}))
    inner.add_node("bad", FailingNode(name="bad", kind="MuteError"))
    inner.set_entry_point("good")
    inner.add_edge("good", "bad")
    inner.add_edge("bad", END)
    graph = StateGraph(State)
    graph.add_node("start", SetVariableNode(name="start", variables={"x": 0}))
    graph.add_node("inner", inner.compile())
    graph.set_entry_point("start")
    graph.add_edge("start", "inner")
    graph.add_edge("inner", END)
    return graph


def at_length() -> StateGraph:
    """Return a graph that fails with many words."""
    return _single(FailingNode(name="start", kind="long"))


def in_edge() -> StateGraph:
    """Return a graph whose branch leads nowhere."""
    graph = _single(SetVariableNode(name="start", variables={"x": 1}), end=False)
    edge = IfElseEdge(name="odd", conditions=[Condition(left="a", operator="greater_than", right=1)])
    graph.add_conditional_edges("start", edge, {"true": END, "false": END})
    return graph


def endless() -> StateGraph:
    """Return a graph without an end."""
    graph = StateGraph(State)
    graph.add_node("ping", SetVariableNode(name="ping", variables={"x": 1}))
    graph.add_node("pong", SetVariableNode(name="pong", variables={"x": 2}))
    graph.set_entry_point("ping")
    graph.add_edge("ping", "pong")
    graph.add_edge("pong", "ping")
    return graph


def unresolved() -> StateGraph:
    """Return a graph with templates that lead nowhere."""
    return _single(SetVariableNode(name="start", variables={"a": "{{inputs.nothing}}", "b": "x {{gone.far}} y"}))


def entrypoint() -> StateGraph:
    """Fail instead of returning a graph."""
    raise RuntimeError(f"not today {uuid.uuid4()}")


def dangling() -> StateGraph:
    """Return a graph with an edge to a node that is not there."""
    graph = _single(SetVariableNode(name="start", variables={"x": 1}), end=False)
    graph.add_edge("start", "nowhere")
    return graph


def _post(name: str) -> HttpRequestNode:
    return HttpRequestNode(name=name, method="POST", url="{{inputs.body.site}}/echo", json_body={"from": name})


def _single(node: TaskNode, *, end: bool = True) -> StateGraph:
    graph = StateGraph(State)
    graph.add_node(node.name, node)
    graph.set_entry_point(node.name)
    if end:
        graph.add_edge(node.name, END)
    return graph
