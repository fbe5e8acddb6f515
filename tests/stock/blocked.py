"""An executor whose runs block their event loop in a node of Orcheo, in one of a subgraph, or in a plain function."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from langgraph.graph import END, StateGraph
from orcheo.graph.state import State
from orcheo.nodes.storage.mongodb import MongoDBFindNode

from orcheo_dispatch.worker.executor.protocol import Run


async def play(run: Run) -> Mapping[str, Any]:
    """Execute the graph that `inputs["graph"]` names, with a MongoDB that may never answer."""
    node = MongoDBFindNode(
        name="unread",
        connection_string=run.inputs["mongodb"],
        database="news",
        collection="items",
        filter={"title": run.inputs["title"]},
    )
    match run.inputs["graph"]:
        case "node":
            graph = _graph("unread", node)
        case "subgraph":
            graph = _graph("inner", _graph("unread", node).compile())
        case _:
            graph = _graph("sleeper", _sleep)
    await graph.compile().ainvoke({"messages": []})
    return {}


async def _sleep(state: State) -> dict[str, Any]:
    time.sleep(3)
    return {}


def _graph(name: str, node: Any) -> StateGraph[Any]:
    graph = StateGraph(State)
    graph.add_node(name, node)
    graph.set_entry_point(name)
    graph.add_edge(name, END)
    return graph
