"""Outputs of all types, what a run is told about itself, and questions to people."""

import dataclasses
import decimal
import enum
import math
import uuid
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt
from orcheo.graph.state import State
from orcheo.nodes.base import TaskNode
from orcheo.nodes.data import CodeNode
from orcheo.nodes.logic import HumanInputNode, SetVariableNode
from pydantic import BaseModel, computed_field


class Point(BaseModel):
    """A model with something that is computed."""

    x: float
    when: datetime

    @computed_field
    @property
    def double(self) -> float:
        """Return twice `x`."""
        return 2 * self.x


@dataclasses.dataclass
class Pair:
    """A dataclass."""

    one: int
    other: str


class Colour(enum.Enum):
    """An enumeration."""

    RED = "red"


class TypesNode(TaskNode):
    """Returns what is not JSON."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Return it."""
        moment = datetime(2020, 2, 3, 4, 5, 6, 789000, UTC)
        return {
            "utc": moment,
            "zoned": moment.astimezone(timezone(timedelta(hours=5, minutes=30))),
            "naive": datetime(2020, 2, 3, 4, 5, 6),  # noqa: DTZ001
            "day": date(2020, 2, 3),
            "uuid": uuid.UUID(int=7),
            "tuple": (1, (2, 3)),
            "model": Point(x=1.5, when=moment),
            "decimal": decimal.Decimal("1.10"),
            "delta": timedelta(seconds=90),
            "keys": {"1": "one", "two": 2},
            "colour": Colour.RED,
            "pair": Pair(1, "b"),
            "set": {1},
            "bytes": b"raw",
        }


class StringsNode(TaskNode):
    """Returns long and unusual text."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Return it."""
        return {"long": "\u00e9x" * 400_000, "control": "a\tb\r\nc\x1b[31m\x7f", "empty": "", "rtl": "\u202eabc"}


class ReturnNode(TaskNode):
    """Returns a value."""

    value: Any

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Return it."""
        return {"value": self.value}


class MessagesNode(TaskNode):
    """Returns messages of each kind, with and without an id."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Return them."""
        call = {"name": "look_up", "args": {"query": "x"}, "id": "call_1", "type": "tool_call"}
        return {
            "messages": [
                HumanMessage("question", id="first"),
                AIMessage("", tool_calls=[call], usage_metadata=dict.fromkeys(_TOKENS, 1)),
                ToolMessage("answer", tool_call_id="call_1", artifact={"rows": 2}),
                AIMessage([{"type": "text", "text": "part"}], response_metadata={"model_name": "m"}),
            ],
            "kept": HumanMessage("in a result", id="second"),
        }


class ConfigNode(TaskNode):
    """Returns what a node is told about its run, but for what the stock worker does not tell."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Return it."""
        configurable = config["configurable"].items()
        own = {key: value for key, value in configurable if not key.startswith("__") and key != "orcheo_dispatch"}
        return {
            "configurable": own,
            "tags": config.get("tags"),
            "metadata": config.get("metadata"),
            "recursion_limit": config.get("recursion_limit"),
            "max_concurrency": config.get("max_concurrency"),
            "state": {key: value for key, value in state.items() if key != "messages"},
        }


class ShoutNode(CodeNode):
    """Code of a user, as it runs in unrestricted mode."""

    word: str = "{{inputs.body.name}}"

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Shout."""
        return {"shouted": self.word.upper(), "inputs": sorted(state["inputs"])}


_TOKENS = ("input_tokens", "output_tokens", "total_tokens")


def types() -> StateGraph:
    """Return a graph whose output is not JSON."""
    return _single(TypesNode(name="types"))


def strings() -> StateGraph:
    """Return a graph with much text."""
    return _single(StringsNode(name="strings"))


def not_a_number() -> StateGraph:
    """Return a graph whose output has numbers that JSON does not have."""
    return _single(ReturnNode(name="node", value={"nan": math.nan, "list": [math.inf, -math.inf, 1.0, 5e-324]}))


def null() -> StateGraph:
    """Return the same graph with null in their place."""
    return _single(ReturnNode(name="node", value={"nan": None, "list": [None, None, 1.0, 5e-324]}))


def nul() -> StateGraph:
    """Return a graph whose output has a character that JSONB refuses."""
    return _single(ReturnNode(name="node", value={"text": "a\x00b", "list": ["\x00"]}))


def replaced() -> StateGraph:
    """Return the same graph with another character in its place."""
    return _single(ReturnNode(name="node", value={"text": "a\ufffdb", "list": ["\ufffd"]}))


def huge_integer() -> StateGraph:
    """Return a graph whose output has a number that LangGraph cannot store."""
    return _single(ReturnNode(name="node", value=2**70))


def messages() -> StateGraph:
    """Return a graph whose output has messages."""
    return _single(MessagesNode(name="messages"))


def config() -> StateGraph:
    """Return a graph that shows its config."""
    return _single(ConfigNode(name="config"))


def code() -> StateGraph:
    """Return a graph with a code node."""
    return _single(ShoutNode(name="shout"))


def human() -> StateGraph:
    """Return a graph that asks a person after one node, and never goes on."""
    graph = StateGraph(State)
    graph.add_node("start", SetVariableNode(name="start", variables={"x": 1}))
    graph.add_node("ask", HumanInputNode(name="ask", prompt="Go on, {{inputs.body.name}}?", expected={"type": "bool"}))
    graph.add_node("end", SetVariableNode(name="end", variables={"x": 2}))
    graph.set_entry_point("start")
    graph.add_edge("start", "ask")
    graph.add_edge("ask", "end")
    graph.add_edge("end", END)
    return graph


def interrupted() -> StateGraph:
    """Return a graph that is interrupted in a subgraph, beside a branch that ends."""

    def ask(state: State) -> dict[str, Any]:
        return {"node_results": {"ask": {"answer": interrupt({"question": "which?"})}}}

    inner = StateGraph(State)
    inner.add_node("inside", SetVariableNode(name="inside", variables={"x": 1}))
    inner.add_node("ask", ask)
    inner.set_entry_point("inside")
    inner.add_edge("inside", "ask")
    inner.add_edge("ask", END)
    graph = StateGraph(State)
    graph.add_node("inner", inner.compile())
    graph.add_node("beside", SetVariableNode(name="beside", variables={"x": 2}))
    graph.add_edge(START, "inner")
    graph.add_edge(START, "beside")
    graph.add_edge("inner", END)
    graph.add_edge("beside", END)
    return graph


def _single(node: TaskNode) -> StateGraph:
    graph = StateGraph(State)
    graph.add_node(node.name, node)
    graph.set_entry_point(node.name)
    graph.add_edge(node.name, END)
    return graph
