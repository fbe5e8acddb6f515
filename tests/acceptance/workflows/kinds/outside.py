"""What reaches out of the process: HTTP, MongoDB, files, credentials, plugins."""

import hashlib
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, StateGraph
from orcheo.edges import Condition, IfElseEdge
from orcheo.graph.state import State
from orcheo.nodes.base import TaskNode
from orcheo.nodes.connectors.http_request import HttpRequestNode
from orcheo.nodes.logic import SetVariableNode
from orcheo.nodes.registry import registry
from orcheo.nodes.rss import RSSNode
from orcheo.nodes.storage.mongodb import (
    MongoDBAggregateNode,
    MongoDBFindNode,
    MongoDBNode,
    MongoDBUpdateManyNode,
)

_DATABASE, _COLLECTION = "news", "items"


class CredentialNode(TaskNode):
    """Uses credentials of the vault, and tells nobody what they are."""

    token: str
    other: str

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Return the digests of the secrets."""
        return {name: hashlib.sha256(getattr(self, name).encode()).hexdigest() for name in ("token", "other")}


class FileNode(TaskNode):
    """Writes a file and reads it back, as nodes that convert attachments do."""

    text: str

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Write and read it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "attachment.txt")
            path.write_text(self.text)
            return {"name": path.name, "read": path.read_text(), "bytes": path.stat().st_size}


def http() -> StateGraph:
    """Return a graph that gets, posts what it got with a credential in a header, and follows a redirect."""
    return _chain(
        HttpRequestNode(name="get", url="{{inputs.body.site}}/json", params={"q": "{{inputs.body.name}}"}),
        HttpRequestNode(
            name="post",
            method="POST",
            url="{{inputs.body.site}}/echo",
            headers={"authorization": "Bearer [[model_key]]"},
            json_body={"got": "{{get.json.items}}"},
        ),
        HttpRequestNode(name="moved", url="{{inputs.body.site}}/moved"),
        HttpRequestNode(name="text", method="PUT", url="{{inputs.body.site}}/echo", content="plain"),
    )


def http_error() -> StateGraph:
    """Return a graph that posts, and then fails on the answer to its second request."""
    return _chain(
        HttpRequestNode(name="post", method="POST", url="{{inputs.body.site}}/echo", json_body={"n": 1}),
        HttpRequestNode(name="gone", url="{{inputs.body.site}}/gone", raise_for_status=True),
        SetVariableNode(name="never", variables={"reached": True}),
    )


def feed() -> StateGraph:
    """Return a graph that reads a feed and keeps something of it."""
    return _chain(
        RSSNode(name="rss", sources=["{{inputs.body.site}}/feed.xml"]),
        SetVariableNode(name="kept", variables={"all": "{{rss}}"}),
    )


def mongodb() -> StateGraph:
    """Return a graph that stores items, counts and reads the unread ones, and marks them as read."""
    graph = StateGraph(State)
    where = {
        "connection_string": "{{inputs.body.mongodb}}",
        "database": _DATABASE,
        "collection": _COLLECTION,
    }
    items = [{"_id": n, "title": f"item {n}", "read": n == 2} for n in range(1, 4)]
    nodes = [
        MongoDBNode(name="store", operation="insert_many", query=items, **where),
        MongoDBAggregateNode(name="count", pipeline=[{"$match": {"read": False}}, {"$count": "unread"}], **where),
        MongoDBFindNode(name="unread", filter={"read": False}, sort={"_id": -1}, limit=10, **where),
        MongoDBUpdateManyNode(name="mark", filter={"read": False}, update={"$set": {"read": True}}, **where),
        MongoDBFindNode(name="left", filter={"read": False}, **where),
        # For the next worker.
        MongoDBNode(name="clear", operation="delete_many", filter={}, **where),
    ]
    for node in nodes:
        graph.add_node(node.name, node)
    graph.set_entry_point("store")
    for node, following in pairwise(nodes[:-2]):
        graph.add_edge(node.name, following.name)
    some = IfElseEdge(name="some", conditions=[Condition(left="{{mark.data.modified_count}}", operator="is_truthy")])
    graph.add_conditional_edges("mark", some, {"true": "left", "false": END})
    graph.add_edge("left", "clear")
    graph.add_edge("clear", END)
    return graph


def files() -> StateGraph:
    """Return a graph that works with a file."""
    return _chain(FileNode(name="file", text="{{inputs.body.text}}"))


def credentials() -> StateGraph:
    """Return a graph that resolves a secret and a part of one."""
    return _chain(CredentialNode(name="secret", token="[[model_key]]", other="[[model_key#secret]]"))


def no_credential() -> StateGraph:
    """Return a graph that needs a secret that is not there."""
    return _chain(
        SetVariableNode(name="before", variables={"done": True}),
        CredentialNode(name="secret", token="[[nowhere]]", other=""),
    )


def plugin() -> StateGraph:
    """Return a graph with a node of a plugin."""
    from orcheo_plugin_of_test import PluginNode

    return _chain(PluginNode(name="plugin", known=registry.get_node("PluginNode") is PluginNode))


def inline() -> StateGraph:
    """Return the same graph, without the plugin."""
    return _chain(SetVariableNode(name="plugin", variables={"from": "a plugin", "known": True}))


def _chain(*nodes: TaskNode) -> StateGraph:
    graph = StateGraph(State)
    for node in nodes:
        graph.add_node(node.name, node)
    graph.set_entry_point(nodes[0].name)
    for node, following in pairwise(nodes):
        graph.add_edge(node.name, following.name)
    graph.add_edge(nodes[-1].name, END)
    return graph
