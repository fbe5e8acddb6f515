"""What a step can know of its execution, in its configuration and in templates; LangGraph's own saver stores steps."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph
from langgraph.types import RetryPolicy, Send
from orcheo.graph.state import State
from orcheo.nodes.base import BaseRunnable, TaskNode
from orcheo.nodes.logic import SetVariableNode
from orcheo.nodes.logic.sub_workflow import SubWorkflowNode
from orcheo.runtime.runnable_config import RunnableConfigModel

from orcheo_dispatch.worker.executor.protocol import Run
from orcheo_dispatch.worker.orcheo.compat import let_unstored_graphs_end_steps
from orcheo_dispatch.worker.orcheo.idempotency import StepValues, provide_in_templates, with_step_values

_TEMPLATE = "{{config.configurable.orcheo_dispatch.idempotency_key}}"

type Graph = StateGraph[Any, Any, Any, Any]


@pytest.fixture(autouse=True)
def templates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates of nodes as in a worker, for the length of a test."""
    name = "_resolve_state_template_path"
    monkeypatch.setattr(BaseRunnable, name, getattr(BaseRunnable, name))
    provide_in_templates()
    let_unstored_graphs_end_steps()


class _Lost(Exception):
    """The worker is lost in this step."""


class _Log:
    """Notes the keys of steps, and loses the worker in one of them, once."""

    def __init__(self, lost_in: str = "") -> None:
        self.keys: list[tuple[str, str]] = []
        self._lost_in = lost_in

    def note(self, name: str, key: str) -> None:
        self.keys.append((name, key))
        if name == self._lost_in:
            self._lost_in = ""
            raise _Lost


class _Step(TaskNode):
    """Notes its key, which the configuration and a template must both give."""

    log: Any
    key: str = _TEMPLATE

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        passes = (state.get("node_results") or {}).get(self.name, {}).get("passes", 0) + 1
        assert config["configurable"]["orcheo_dispatch"]["idempotency_key"] == self.key
        self.log.note(f"{self.name}{state['inputs'].get('item', '')}", self.key)
        return {"passes": passes}


def _run(attempt: int = 1, run_id: str | None = None, **configurable: Any) -> Run:
    config = {"configurable": configurable}
    return Run(run_id or str(uuid4()), 1, attempt, "w", "v", "s", "webhook", {}, config)


def _config(run: Run, saver: InMemorySaver) -> RunnableConfig:
    model = RunnableConfigModel.model_validate(run.runnable_config)

    def is_stored(namespace: str, checkpoint_id: str) -> bool:
        return checkpoint_id in saver.storage[run.run_id][namespace]

    return with_step_values(model.to_runnable_config(run.run_id), run, is_stored)


def _state(run: Run) -> dict[str, Any]:
    model = RunnableConfigModel.model_validate(run.runnable_config)
    return {"inputs": {}, "node_results": {}, "messages": [], "config": model.to_state_config(run.run_id)}


async def _execute(graph: Graph, run: Run, saver: InMemorySaver, *, continues: bool = False) -> dict[str, Any]:
    """Execute a run as the executor does, and return its final state."""
    compiled = graph.compile(checkpointer=saver)
    state, config = None if continues else _state(run), _config(run, saver)
    async for _ in compiled.astream(state, config, stream_mode="updates", subgraphs=True, durability="sync"):
        pass
    return (await compiled.aget_state(config)).values


def _executed(graph: Graph, run: Run) -> dict[str, Any]:
    return asyncio.run(_execute(graph, run, InMemorySaver()))


def _chained(graph: Graph, *names: str) -> Graph:
    for one, next_one in itertools.pairwise((START, *names, END)):
        graph.add_edge(one, next_one)
    return graph


def _of_steps(log: _Log, *names: str) -> Graph:
    graph = StateGraph(State)
    for name in names:
        graph.add_node(name, _Step(name=name, log=log))
    return graph


def _chain(log: _Log) -> Graph:
    return _chained(_of_steps(log, "a", "b", "c"), "a", "b", "c")


def _loop(log: _Log) -> Graph:
    graph = _of_steps(log, "a", "b")
    graph.add_edge(START, "a")
    graph.add_conditional_edges("a", lambda state: "a" if state["node_results"]["a"]["passes"] < 3 else "b")
    graph.add_edge("b", END)
    return graph


def _branches(log: _Log) -> Graph:
    graph = _of_steps(log, "a", "b", "c", "d")
    for name in ("b", "c"):
        graph.add_edge("a", name)
        graph.add_edge(name, "d")
    graph.add_edge(START, "a")
    graph.add_edge("d", END)
    return graph


def _nested(log: _Log) -> Graph:
    """Return a graph in a graph in a graph."""
    inner = _chained(_of_steps(log, "b", "c"), "b", "c").compile()
    middle = _of_steps(log, "d")
    middle.add_node("inner", inner)
    outer = _of_steps(log, "a", "e")
    outer.add_node("middle", _chained(middle, "inner", "d").compile())
    return _chained(outer, "a", "middle", "e")


def _unstored(log: _Log) -> Graph:
    """Return a graph with a loop over a graph that LangGraph stores nothing of."""
    inner = _of_steps(log, "b", "c", "d")
    for name in ("c", "d"):
        inner.add_edge("b", name)
        inner.add_edge(name, END)
    inner.add_edge(START, "b")
    graph = _of_steps(log, "a")
    graph.add_node("inner", inner.compile(checkpointer=False))
    graph.add_edge(START, "a")
    graph.add_edge("a", "inner")
    graph.add_conditional_edges("inner", lambda state: "a" if state["node_results"]["a"]["passes"] < 2 else END)
    return graph


def _called_twice(log: _Log) -> Graph:
    """Return a graph with a node that calls another graph two times."""
    inner = _chained(_of_steps(log, "b"), "b").compile()

    async def calls(state: State) -> dict[str, Any]:
        for item in "12":
            await inner.ainvoke({**state, "inputs": {"item": item}})
        return {}

    graph = _of_steps(log, "a")
    graph.add_node("calls", calls)
    return _chained(graph, "a", "calls")


def _mapped(log: _Log) -> Graph:
    graph = _of_steps(log, "a", "b", "c")
    graph.add_edge(START, "a")
    sends = lambda state: [Send("b", {**state, "inputs": {"item": item}}) for item in "123"]  # noqa: E731
    graph.add_conditional_edges("a", sends, ["b"])
    graph.add_edge("b", "c")
    graph.add_edge("c", END)
    return graph


_SHAPES: list[tuple[Callable[[_Log], Graph], str, list[str]]] = [
    (_chain, "b", ["a", "b", "c"]),
    (_loop, "a", ["a", "a", "a", "b"]),
    (_branches, "c", ["a", "b", "c", "d"]),
    (_nested, "c", ["a", "b", "c", "d", "e"]),
    (_unstored, "d", ["a", "a", "b", "b", "c", "c", "d", "d"]),
    (_called_twice, "b2", ["a", "b1", "b2"]),
    (_mapped, "b2", ["a", "b1", "b2", "b3", "c"]),
]


@pytest.mark.parametrize(("shape", "lost_in", "steps"), _SHAPES)
def test_step_has_the_same_key_again_and_no_other_step_has_it(
    shape: Callable[[_Log], Graph], lost_in: str, steps: list[str]
) -> None:
    log, saver, run = _Log(lost_in), InMemorySaver(), _run()
    with pytest.raises(_Lost):
        asyncio.run(_execute(shape(log), run, saver))
    asyncio.run(_execute(shape(log), _run(2, run.run_id), saver, continues=True))
    lost = [key for name, key in log.keys if name == lost_in]
    assert lost.count(lost[0]) == 2
    once = set(log.keys)
    assert len(log.keys) - len(once) == (3 if shape is _unstored else 1)
    assert sorted(name for name, _ in once) == steps
    assert len({key for _, key in once}) == len(steps)
    assert all(key.split(":")[0] == run.run_id and len(key.split(":")) == 3 for _, key in once)


def test_step_that_langgraph_tries_again_has_the_same_key() -> None:
    log, graph = _Log("a"), StateGraph(State)
    graph.add_node("a", _Step(name="a", log=log), retry_policy=RetryPolicy(initial_interval=0.01, retry_on=_Lost))
    _executed(_chained(graph, "a"), _run())
    assert len(log.keys) == 2
    assert len(set(log.keys)) == 1


class _Model(GenericFakeChatModel):
    """Calls a tool two times at once, then ends."""

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self


def _agent(log: _Log) -> Graph:
    """Return a graph with an agent whose model is asked once before the worker is lost and once after."""

    @tool
    async def charge(item: int, config: RunnableConfig) -> str:
        """Charge."""
        log.note(f"charge{item}", config["configurable"]["orcheo_dispatch"]["idempotency_key"])
        return "charged"

    calls = [{"name": "charge", "args": {"item": item}, "id": f"call {item}"} for item in (1, 2)]
    agent = create_agent(_Model(messages=iter([AIMessage("", tool_calls=calls), AIMessage("done")])), [charge])
    graph = StateGraph(State)
    graph.add_node("agent", agent)
    return _chained(graph, "agent")


def test_each_call_of_a_tool_by_an_agent_has_a_key() -> None:
    log, saver, run = _Log("charge2"), InMemorySaver(), _run()
    graph = _agent(log)
    with pytest.raises(_Lost):
        asyncio.run(_execute(graph, run, saver))
    asyncio.run(_execute(graph, run, saver, continues=True))
    assert sorted({name for name, _ in log.keys}) == ["charge1", "charge2"]
    assert len({key for _, key in log.keys}) == 2
    assert [name for name, _ in log.keys].count("charge2") == 2


def test_runs_at_the_same_time_have_their_own_values() -> None:
    log, runs = _Log(), [_run(attempt) for attempt in (1, 2, 3)]

    async def execute() -> None:
        await asyncio.gather(*(_execute(_chain(log), run, InMemorySaver()) for run in runs))

    asyncio.run(execute())
    assert len({key for _, key in log.keys}) == 9
    assert {key.split(":")[0] for _, key in log.keys} == {run.run_id for run in runs}


def _showing(template: str) -> Graph:
    graph = StateGraph(State)
    graph.add_node("a", SetVariableNode(name="a", variables={"shown": template}))
    return _chained(graph, "a")


def _shown(template: str, run: Run) -> Any:
    return _executed(_showing(template), run)["node_results"]["a"]["shown"]


def test_templates_give_the_values_of_the_run() -> None:
    run = _run(7)
    assert _shown("{{ config.configurable.orcheo_dispatch.run_id }}", run) == run.run_id
    assert _shown("{{config.configurable.orcheo_dispatch.attempt}}", run) == 7
    assert _shown("attempt {{config.configurable.orcheo_dispatch.attempt}}", run) == "attempt 7"
    assert _shown(f"{_TEMPLATE}:second", run).endswith(":second")
    assert _shown("{{config.configurable.orcheo_dispatch}}", run).keys() == {"run_id", "attempt", "idempotency_key"}


def test_other_templates_are_those_of_orcheo() -> None:
    run = _run(tone="kind")
    assert _shown("{{config.configurable.tone}}", run) == "kind"
    assert _shown("{{config.configurable.thread_id}}", run) == run.run_id
    assert _shown("{{config.configurable.orcheo_dispatching}}", run) == "{{config.configurable.orcheo_dispatching}}"


@pytest.mark.parametrize("name", ["idempotency", "attempt.more"])
def test_template_that_names_no_value_fails_the_run(name: str) -> None:
    with pytest.raises(ValueError, match=f"orcheo_dispatch.{name} does not exist: expected one of run_id, attempt, "):
        _executed(_showing(f"{{{{config.configurable.orcheo_dispatch.{name}}}}}"), _run())


def test_template_outside_of_a_run_is_an_error() -> None:
    node = SetVariableNode(name="a", variables={"key": _TEMPLATE})
    with pytest.raises(ValueError, match=r"config\.configurable\.orcheo_dispatch is not available here"):
        node.resolved_for_run(State(messages=[], inputs={}))


def test_steps_of_a_sub_workflow_share_the_key_of_its_step() -> None:
    steps: list[Mapping[str, Any]] = [
        {"type": "SetVariableNode", "name": name, "variables": {"key": _TEMPLATE}} for name in ("b", "c")
    ]
    graph = StateGraph(State)
    graph.add_node("a", SubWorkflowNode(name="a", steps=steps))
    results = _executed(_chained(graph, "a"), _run())["node_results"]["a"]["steps"]
    assert len({each["result"]["key"] for each in results}) == 1


def test_what_a_client_sends_under_the_name_is_not_used_and_stays_in_the_state() -> None:
    run = _run(orcheo_dispatch={"run_id": "forged"})
    state = _executed(_showing("{{config.configurable.orcheo_dispatch.run_id}}"), run)
    assert state["node_results"]["a"]["shown"] == run.run_id
    assert state["config"]["configurable"]["orcheo_dispatch"] == {"run_id": "forged"}


def test_state_has_no_values() -> None:
    assert "orcheo_dispatch" not in json.dumps(_executed(_chain(_Log()), _run()))


def test_there_is_no_key_outside_of_a_step() -> None:
    values = StepValues("r", 1, lambda *_: True)
    assert dict(values) == {"run_id": "r", "attempt": 1}
    assert "idempotency_key" not in values
    assert values.get("idempotency_key") is None
    with pytest.raises(KeyError):
        values["idempotency_key"]


class _Copying(TaskNode):
    """Copies the values in each way that code may choose."""

    copies: Any

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        values, serde = config["configurable"]["orcheo_dispatch"], JsonPlusSerializer()
        assert serde.loads_typed(serde.dumps_typed(values)).items() <= dict(values).items()
        assert len(values) == len(list(values)) == len(values.keys()) == len(values.values()) == 3
        self.copies.extend([copy.copy(values), copy.deepcopy(config["configurable"]["orcheo_dispatch"]), dict(values)])
        self.copies.extend([{**values}, values.copy(), dict(values.items()), json.loads(json.dumps(values))])
        return {}


def test_copies_in_a_step_are_plain_and_complete() -> None:
    copies: list[Any] = []
    graph = StateGraph(State)
    graph.add_node("a", _Copying(name="a", copies=SimpleNamespace(extend=copies.extend)))
    _executed(_chained(graph, "a"), _run())
    assert len(copies) == 7
    assert all(type(each) is dict and each == copies[0] for each in copies)
    assert copies[0].keys() == {"run_id", "attempt", "idempotency_key"}
