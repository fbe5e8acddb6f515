"""Control flow: switches, loops, parallel branches, Send, Command, subgraphs and sub-workflows."""

import operator
from typing import Annotated, Any, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send
from orcheo.edges import Condition, IfElseEdge, SwitchEdge, WhileEdge
from orcheo.edges.branching import SwitchCase
from orcheo.graph.state import State
from orcheo.nodes.base import TaskNode
from orcheo.nodes.data import DataTransformNode, JsonProcessingNode, MergeNode
from orcheo.nodes.logic import DebugNode, DelayNode, ForLoopNode, SetVariableNode, SubWorkflowNode


class CountNode(TaskNode):
    """Counts its own calls in the state, as the loop of a `WhileEdge` needs it."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Count one more."""
        return {"iteration": state["node_results"].get(self.name, {}).get("iteration", 0) + 1}


def switch() -> StateGraph:
    """Return a graph with a case for each of three words, in any case, and one for all others."""
    graph = StateGraph(State)
    graph.add_node("start", SetVariableNode(name="start", variables={"colour": "{{inputs.body.colour}}"}))
    for name in ("warm", "cold", "other"):
        graph.add_node(name, SetVariableNode(name=name, variables={"is": name}))
        graph.add_edge(name, END)
    graph.set_entry_point("start")
    cases = [
        SwitchCase(match="red", branch_key="warm"),
        SwitchCase(match="blue", branch_key="cold", case_sensitive=False),
    ]
    graph.add_conditional_edges(
        "start",
        SwitchEdge(name="which", value="{{start.colour}}", cases=cases),
        {"warm": "warm", "cold": "cold", "default": "other"},
    )
    return graph


def loop() -> StateGraph:
    """Return a graph that goes round five times, until its guard stops it at four."""
    graph = StateGraph(State)
    graph.add_node("again", CountNode(name="again"))
    graph.add_node("end", SetVariableNode(name="end", variables={"rounds": "{{again.iteration}}"}))
    graph.set_entry_point("again")
    condition = Condition(operator="less_than", right="{{inputs.body.rounds}}")
    graph.add_conditional_edges(
        "again",
        WhileEdge(name="again", conditions=[condition], max_iterations=4),
        {"continue": "again", "exit": "end"},
    )
    graph.add_edge("end", END)
    return graph


def parallel() -> StateGraph:
    """Return a graph of three branches, one slower than the others, that join."""
    graph = StateGraph(State)
    graph.add_node("start", SetVariableNode(name="start", variables={"of": "{{inputs.body.name}}"}))
    graph.add_node("left", SetVariableNode(name="left", variables={"side": "left of {{start.of}}"}))
    graph.add_node("slow", DelayNode(name="slow", duration_seconds=0.05))
    graph.add_node("right", SetVariableNode(name="right", variables={"side": "right"}))
    graph.add_node("after", SetVariableNode(name="after", variables={"sides": ["{{left.side}}", "{{right.side}}"]}))
    graph.set_entry_point("start")
    for name in ("left", "slow", "right"):
        graph.add_edge("start", name)
    graph.add_edge(["left", "slow", "right"], "after")
    graph.add_edge("after", END)
    return graph


class Tally(TypedDict, total=False):
    """A state of the workflow's own, with what the API gives to each run."""

    inputs: dict[str, Any]
    items: list[int]
    item: int
    squares: Annotated[list[int], operator.add]
    total: int


def send() -> StateGraph:
    """Return a graph that maps over a list with `Send`, reduces it and has a state of its own."""

    def begin(state: Tally) -> Tally:
        return {"items": state["inputs"]["body"]["items"]}

    def fan_out(state: Tally) -> list[Send]:
        return [Send("square", {"item": item}) for item in state["items"]]

    def square(state: Tally) -> Tally:
        return {"squares": [state["item"] ** 2]}

    def add(state: Tally) -> Tally:
        return {"total": sum(state["squares"])}

    graph = StateGraph(Tally)
    graph.add_node("begin", begin)
    graph.add_node("square", square)
    graph.add_node("add", add)
    graph.add_edge(START, "begin")
    graph.add_conditional_edges("begin", fan_out, ["square"])
    graph.add_edge("square", "add")
    graph.add_edge("add", END)
    return graph


def command() -> StateGraph:
    """Return a graph whose nodes say by `Command` where to go on."""

    def choose(state: State) -> Command[Any]:
        count = state["inputs"]["body"]["count"]
        return Command(goto="many" if count > 2 else "few", update={"node_results": {"choose": {"count": count}}})

    graph = StateGraph(State)
    graph.add_node("choose", choose, destinations=("many", "few"))
    graph.add_node("many", SetVariableNode(name="many", variables={"branch": "many"}))
    graph.add_node("few", SetVariableNode(name="few", variables={"branch": "few"}))
    graph.set_entry_point("choose")
    graph.add_edge("many", END)
    graph.add_edge("few", END)
    return graph


def nested() -> StateGraph:
    """Return a graph with a subgraph in a subgraph, beside a branch without one."""
    innermost = StateGraph(State)
    innermost.add_node("deepest", SetVariableNode(name="deepest", variables={"depth": 2}))
    innermost.set_entry_point("deepest")
    innermost.add_edge("deepest", END)
    middle = StateGraph(State)
    middle.add_node("inner", innermost.compile())
    middle.add_node("middle", SetVariableNode(name="middle", variables={"below": "{{deepest.depth}}"}))
    middle.set_entry_point("inner")
    middle.add_edge("inner", "middle")
    middle.add_edge("middle", END)
    graph = StateGraph(State)
    graph.add_node("outer", middle.compile())
    graph.add_node("beside", SetVariableNode(name="beside", variables={"is": "beside"}))
    graph.add_node("end", SetVariableNode(name="end", variables={"middle": "{{middle.below}}"}))
    graph.add_edge(START, "outer")
    graph.add_edge(START, "beside")
    graph.add_edge(["outer", "beside"], "end")
    graph.add_edge("end", END)
    return graph


def sub_workflow() -> StateGraph:
    """Return a graph of one node that executes a list of nodes."""
    steps = [
        {"type": "SetVariableNode", "name": "first", "variables": {"name": "{{inputs.body.name}}"}},
        {"type": "JsonProcessingNode", "name": "second", "operation": "stringify", "input_data": "{{first}}"},
    ]
    graph = StateGraph(State)
    node = SubWorkflowNode(name="sub", steps=steps, include_state=True, propagate_to_parent=True)
    graph.add_node("sub", node)
    graph.set_entry_point("sub")
    graph.add_edge("sub", END)
    return graph


def data() -> StateGraph:
    """Return a graph of the nodes that change data, and one that looks at the state."""
    graph = StateGraph(State)
    graph.add_node("parse", JsonProcessingNode(name="parse", input_data="{{inputs.body.text}}"))
    transforms = [
        {"source": "a.0.b", "target": "x.y", "transform": "upper"},
        {"source": "missing", "target": "z", "default": "none"},
        {"source": "a", "target": "n", "transform": "length"},
    ]
    graph.add_node("map", DataTransformNode(name="map", input_data="{{parse.result}}", transforms=transforms))
    graph.add_node("merge", MergeNode(name="merge", items=["{{map.result}}", {"x": {"w": 1}}]))
    graph.add_node("each", ForLoopNode(name="each", items="{{parse.result.a}}"))
    graph.add_node("look", DebugNode(name="look", tap_path="merge.result", include_state=True))
    graph.set_entry_point("parse")
    for one, other in (("parse", "map"), ("map", "merge"), ("merge", "each")):
        graph.add_edge(one, other)
    done = IfElseEdge(name="is_done", conditions=[Condition(left="{{each.done}}", operator="is_truthy")])
    graph.add_conditional_edges("each", done, {"true": "look", "false": "each"})
    graph.add_edge("look", END)
    return graph


async def orcheo_workflow() -> StateGraph:
    """Return a graph of plain functions, as an entrypoint that is a coroutine and has the default name."""

    async def greet(state: State, config: RunnableConfig) -> dict[str, Any]:
        name = state["inputs"]["body"]["name"]
        return {"assistant_message": f"hello {name}", "messages": [{"role": "user", "content": name}]}

    graph = StateGraph(State)
    graph.add_node("greet", greet)
    graph.add_edge(START, "greet")
    graph.add_edge("greet", END)
    return graph
