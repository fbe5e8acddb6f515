"""A workflow of one node for each entrypoint: what may happen inside one."""

import sys
from typing import Any, ClassVar

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, StateGraph
from orcheo.graph.state import State
from orcheo.nodes.base import TaskNode
from orcheo.nodes.logic import SetVariableNode

from tests.support.orcheo import executions


class FailingNode(TaskNode):
    """Fails with a password and an unstorable character in the text of its error."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Raise it."""
        raise ValueError("no luck at postgresql://ada:hunter2@db/x \x00")


class ExitingNode(TaskNode):
    """Calls `sys.exit`."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Call it."""
        sys.exit(3)


class UnstorableNode(TaskNode):
    """Returns what JSONB refuses."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Return it."""
        return {"nan": float("nan"), "text": "a\x00b\ud800", "keys": {1: float("inf")}}


class CredentialNode(TaskNode):
    """Uses a credential of the vault, and tells nobody what it is."""

    token: str

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Say how long the secret is."""
        return {"length": len(self.token), "resolved": not self.token.startswith("[[")}


class CountingNode(TaskNode):
    """Counts its calls in its class, as careless scripts do."""

    calls: ClassVar[list[int]] = []

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Count one more."""
        self.calls.append(1)
        return {"calls": len(self.calls)}


class WaitingNode(TaskNode):
    """Says that it waits, waits until the test lets it go, and says that it has stopped."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Wait."""
        signals = executions.signals()
        signals.waiting.release()
        try:
            await signals.go.wait()
        finally:
            signals.stopped.release()
        return {}


def greet() -> StateGraph:
    """Return a graph that succeeds."""
    return _graph(SetVariableNode(name="start", variables={"greeting": "hello {{inputs.body.name}}"}))


def fail() -> StateGraph:
    """Return a graph that fails."""
    return _graph(FailingNode(name="start"))


def leave() -> StateGraph:
    """Return a graph that leaves Python."""
    return _graph(ExitingNode(name="start"))


def unstorable() -> StateGraph:
    """Return a graph whose output cannot be stored as it is."""
    return _graph(UnstorableNode(name="start"))


def unlock() -> StateGraph:
    """Return a graph that needs a credential of the vault."""
    return _graph(CredentialNode(name="start", token="[[door_key]]"))


def count() -> StateGraph:
    """Return a graph that keeps something in its node."""
    return _graph(CountingNode(name="start"))


def wait() -> StateGraph:
    """Return a graph that waits."""
    return _graph(WaitingNode(name="start"))


def _graph(node: TaskNode) -> StateGraph:
    graph = StateGraph(State)
    graph.add_node("start", node)
    graph.set_entry_point("start")
    graph.add_edge("start", END)
    return graph
