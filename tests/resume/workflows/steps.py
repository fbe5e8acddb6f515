"""Graphs of steps that note when they begin and end, and wait for as long as a file tells them to.

Ingested by the API as the script of a workflow, one entrypoint per shape.
"""

import asyncio
import itertools
import json
import operator
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.graph import END, StateGraph
from langgraph.types import RetryPolicy, Send, interrupt
from orcheo.graph.state import State
from orcheo.nodes.base import TaskNode
from orcheo.nodes.logic import SubWorkflowNode
from orcheo.nodes.registry import NodeMetadata, registry

try:
    from langgraph.channels.delta import DeltaChannel
except ImportError:
    # Releases before 1.2 have no such channel.
    DeltaChannel = None

_ROUNDS = 3
_LARGE_BYTES = 9_000_000


@registry.register(NodeMetadata(name="ResumeStep", description="A step of a sub-workflow.", category="test"))
class Step(TaskNode):
    """Notes in `log` of the folder that the webhook names when it begins and ends; waits while `hold-NAME-N` exists
    there, and for the `seconds` that the webhook names.

    Each execution is also a line of `executions` there: which step of which graph it is, when it began, and where.
    """

    fails: int = 0
    """Number of times that it fails before it succeeds."""
    lasts: float = 0
    """How long it takes at least (seconds)."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Return how often this step has been passed in this run."""
        return {"times": await self._pass(state, config)}

    async def _pass(self, state: State, config: RunnableConfig) -> int:
        folder = Path(state["inputs"]["body"]["folder"])
        name, times = self._label(state, folder)
        self._note_execution(folder, f"{name} {times}", config)
        self._note(folder, f"begin {name} {times}")
        while (folder / f"hold-{name}-{times}").exists():
            await asyncio.sleep(0.02)
        await asyncio.sleep(max(self.lasts, state["inputs"]["body"].get("seconds", 0)))
        self._note(folder, f"end {name} {times}")
        if times <= self.fails:
            raise ConnectionError(f"failure {times}")
        return times

    def _label(self, state: State, folder: Path) -> tuple[str, int]:
        if self.fails:
            return self.name, 1 + (folder / "log").read_text().count(f"end {self.name} ")
        return self.name, int(((state.get("node_results") or {}).get(self.name) or {}).get("times", 0)) + 1

    def _note(self, folder: Path, line: str) -> None:
        with (folder / "log").open("a", encoding="utf-8") as log:
            log.write(f"{line}\n")

    def _note_execution(self, folder: Path, label: str, config: RunnableConfig) -> None:
        namespace, _, task = config["metadata"]["langgraph_checkpoint_ns"].rpartition("|")
        execution = {
            "run_id": config["configurable"]["thread_id"],
            "label": label,
            "namespace": namespace,
            "step": config["metadata"]["langgraph_step"],
            "task_id": task.partition(":")[2],
            "at": time.time(),
            "pid": os.getpid(),
        }
        with (folder / "executions").open("a", encoding="utf-8") as executions:
            executions.write(f"{json.dumps(execution)}\n")


class Asking(Step):
    """Waits for a person."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Stop the run until somebody answers."""
        await self._pass(state, config)
        return {"answer": interrupt("what now?")}


class Each(Step):
    """One of the tasks that a list is fanned out to."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Return the result of this item under its own name."""
        times = await self._pass(state, config)
        return {"node_results": {self._label(state, Path())[0]: {"times": times}}}

    def _label(self, state: State, folder: Path) -> tuple[str, int]:
        return f"{self.name}-{state['item']}", 1


@tool
def look_up(query: str) -> list[dict[str, str]]:
    """Look something up."""
    return [{"type": "text", "text": f"all about {query}"}]


class Model(Step):
    """Answers with calls of tools in the first rounds, and then without."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Return the answer of the model."""
        times = await self._pass(state, config)
        calls = [
            {"name": "look_up", "args": {"query": f"{times}.{place}"}, "id": f"call-{times}-{place}"}
            for place in (1, 2)
            if times <= _ROUNDS
        ]
        answer = AIMessage([{"type": "text", "text": f"round {times}"}], id=f"model-{times}", tool_calls=calls)
        model = FakeMessagesListChatModel(responses=[answer])
        return {"times": times, "messages": [await model.ainvoke([HumanMessage("go"), *state["messages"]])]}


class Tools(Step):
    """Executes the calls of the last message."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Return a message for each call."""
        times = await self._pass(state, config)
        calls = state["messages"][-1].tool_calls
        answers = [await look_up.ainvoke({**call, "type": "tool_call"}) for call in calls]
        named = [each.model_copy(update={"id": f"tool-{each.tool_call_id}"}) for each in answers]
        return {"times": times, "messages": named}


class Large(Step):
    """Writes two values that are too large for one statement."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Return both."""
        times = await self._pass(state, config)
        message = AIMessage("m" * _LARGE_BYTES, id="large")
        return {"times": times, "messages": [message], "structured_response": {"text": "s" * _LARGE_BYTES}}


class Measuring(Step):
    """Says how large these values are, and drops them."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Return their sizes."""
        times = await self._pass(state, config)
        sizes = [len(message.content) for message in state["messages"]]
        sizes.append(len((state.get("structured_response") or {"text": ""})["text"]))
        return {"times": times, "sizes": sizes, "messages": [RemoveMessage("large")], "structured_response": None}


def _added(notes: list[str], more: Sequence[list[str]]) -> list[str]:
    return [*notes, *itertools.chain.from_iterable(more)]


class WithNotes(State):
    """The state of `delta`."""

    notes: Annotated[list[str], operator.add if DeltaChannel is None else DeltaChannel(_added)]


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


def lasting() -> StateGraph:
    """One after the other; the second is held for long."""
    names = ("a", "b", "c")
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


def sub_workflow() -> StateGraph:
    """Orcheo's node that executes another workflow within one step, as the second of three."""
    graph = _add(StateGraph(State), "a", "d")
    inner = [{"type": "ResumeStep", "name": name} for name in ("b", "c")]
    graph.add_node("inside", SubWorkflowNode(name="inside", steps=inner))
    return _chained(graph, "a", "inside", "d")


def fan_out() -> StateGraph:
    """One step for each of three items, all at once, then one."""
    graph = _add(StateGraph(State), "a", "join")
    graph.add_node("each", Each(name="each"))
    graph.set_entry_point("a")
    graph.add_conditional_edges(
        "a", lambda state: [Send("each", {"inputs": state["inputs"], "item": item}) for item in (1, 2, 3)], ["each"]
    )
    graph.add_edge("each", "join")
    graph.add_edge("join", END)
    return graph


def asking() -> StateGraph:
    """Two steps, then a person is asked."""
    graph = _add(StateGraph(State), "a", "b", "d")
    graph.add_node("c", Asking(name="c"))
    return _chained(graph, "a", "b", "c", "d")


def asking_beside() -> StateGraph:
    """A person is asked in one branch while another step is in progress."""
    graph = _add(StateGraph(State), "start", "b", "join")
    graph.add_node("a", Asking(name="a"))
    graph.set_entry_point("start")
    for name in ("a", "b"):
        graph.add_edge("start", name)
        graph.add_edge(name, "join")
    graph.add_edge("join", END)
    return graph


def agent() -> StateGraph:
    """A model that calls tools for some rounds."""
    graph = StateGraph(State)
    graph.add_node("model", Model(name="model"))
    graph.add_node("tools", Tools(name="tools"))
    graph.set_entry_point("model")
    graph.add_conditional_edges("model", lambda state: "tools" if state["messages"][-1].tool_calls else END)
    graph.add_edge("tools", "model")
    return graph


def retried() -> StateGraph:
    """The second of three steps fails twice."""
    graph = _add(StateGraph(State), "a", "c")
    policy = RetryPolicy(max_attempts=3, initial_interval=0.2, backoff_factor=1.0, jitter=False)
    graph.add_node("b", Step(name="b", fails=2), retry_policy=policy)
    return _chained(graph, "a", "b", "c")


def large() -> StateGraph:
    """The first step writes a lot while another one is in progress; then a third."""
    graph = StateGraph(State)
    graph.add_node("a", Large(name="a"))
    graph.add_node("beside", Step(name="beside", lasts=2))
    graph.add_node("b", Measuring(name="b"))
    for name in ("a", "beside"):
        graph.set_entry_point(name)
    graph.add_edge(["a", "beside"], "b")
    graph.add_edge("b", END)
    return graph


def delta() -> StateGraph:
    """Steps between which notes are added to a channel that is stored as what was added to it."""
    graph = _add(StateGraph(WithNotes), "a", "b", "c", "d")
    for name in ("after a", "after b", "after c"):
        graph.add_node(name, lambda _, name=name: {"notes": [name]})
    return _chained(graph, "a", "after a", "b", "after b", "c", "after c", "d")
