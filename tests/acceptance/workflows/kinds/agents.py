"""Agents, as Orcheo's examples build them; the model is one on this machine."""

from typing import Any

from langgraph.graph import END, StateGraph
from orcheo.edges.results import ResultFieldRouteEdge
from orcheo.graph.state import State
from orcheo.nodes.ai import AgentNode, AgentReplyExtractorNode
from orcheo.nodes.logic import SetVariableNode, StructuredRouterDispatchNode
from pydantic import BaseModel, Field

_MODEL = "openai:gpt-4o-mini"


class LookUp(BaseModel):
    """Arguments of a tool."""

    query: str = Field(description="What to look up.")


class Decision(BaseModel):
    """What the router answers."""

    action: str
    branch: str = ""
    message: str = ""


def chat() -> StateGraph:
    """Return an agent without tools, whose reply is taken out of its messages."""
    graph = StateGraph(State)
    graph.add_node("agent", _agent(system_prompt="{{config.configurable.system_prompt}}"))
    graph.add_node("reply", AgentReplyExtractorNode(name="reply"))
    graph.set_entry_point("agent")
    graph.add_edge("agent", "reply")
    graph.add_edge("reply", END)
    return graph


def tools() -> StateGraph:
    """Return an agent that calls a workflow and one of Orcheo's own functions."""
    look_up = StateGraph(State)
    look_up.add_node("found", SetVariableNode(name="found", variables={"text": "all about {{inputs.query}}"}))
    look_up.set_entry_point("found")
    look_up.add_edge("found", END)
    tool: dict[str, Any] = {
        "name": "look_up",
        "description": "Look something up.",
        "graph": look_up,
        "args_schema": LookUp,
        "output_path": "node_results.found.text",
    }
    return _single(_agent(workflow_tools=[tool], predefined_tools=["greet_user"]))


def router() -> StateGraph:
    """Return an agent whose structured answer says which branch is taken."""
    graph = StateGraph(State)
    graph.add_node("agent", _agent(response_format=Decision))
    graph.add_node("dispatch", StructuredRouterDispatchNode(name="dispatch"))
    for name in ("billing", "other"):
        graph.add_node(name, SetVariableNode(name=name, variables={"taken": name}))
        graph.add_edge(name, END)
    graph.set_entry_point("agent")
    graph.add_edge("agent", "dispatch")
    route = ResultFieldRouteEdge(
        name="route", result_node="dispatch", allowed_routes={"billing"}, fallback_route="other"
    )
    graph.add_conditional_edges("dispatch", route, {"billing": "billing", "other": "other"})
    return graph


def remembering() -> StateGraph:
    """Return two agents, one after the other, that share a history in the graph store."""
    graph = StateGraph(State)
    graph.add_node("agent", _agent(use_graph_chat_history=True))
    graph.add_node("second", _agent(name="second", use_graph_chat_history=True))
    graph.set_entry_point("agent")
    graph.add_edge("agent", "second")
    graph.add_edge("second", END)
    return graph


def _single(node: AgentNode) -> StateGraph:
    graph = StateGraph(State)
    graph.add_node("agent", node)
    graph.set_entry_point("agent")
    graph.add_edge("agent", END)
    return graph


def _agent(name: str = "agent", **arguments: Any) -> AgentNode:
    model = {"api_key": "[[model_key]]", "base_url": "{{inputs.body.site}}/v1", "max_retries": 0}
    return AgentNode(name=name, ai_model=_MODEL, model_kwargs=model, **arguments)
