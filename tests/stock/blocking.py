"""Orcheo's nodes whose `async def` blocks: found in the sources of the installed release."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import orcheo.nodes  # noqa: F401 - registers the nodes.
from orcheo.nodes.registry import registry

# What a synchronous function of a node is called, or ends with, that reaches out of the process or computes for long.
BLOCKING = {
    "MongoDB's synchronous driver": ("self._execute_operation",),
    "files": ("open", ".read_bytes", ".read_text", ".write_bytes", ".write_text"),
    "sparse embeddings, computed on the event loop": ("sparse_embed_documents", "sparse_embed_query"),
    "others": ("time.sleep", "urlopen", "subprocess.run", "requests.get", "requests.post", "httpx.get", "httpx.post"),
}


def blocking_nodes() -> dict[str, str]:
    """Return the names of the nodes of Orcheo that block their event loop, and what they do so with."""
    classes = {each.name: registry.get_node(each.name) for each in registry.list_metadata()}
    return {name: why for name, node in sorted(classes.items()) if node and (why := _why(node))}


def _why(node: Any) -> str | None:
    for called in _called(node):
        for why, names in BLOCKING.items():
            if any(called == name or (name.startswith(".") and called.endswith(name)) for name in names):
                return why
    return None


def _called(node: Any) -> Iterator[str]:
    """Yield what the asynchronous methods of a class call without `await`, those that it inherits included."""
    for name in dir(node):
        method = inspect.getattr_static(node, name)
        method = getattr(method, "__func__", method)
        if inspect.iscoroutinefunction(method) and method.__module__.startswith("orcheo."):
            function = ast.parse(textwrap.dedent(inspect.getsource(method))).body[0]
            assert isinstance(function, ast.AsyncFunctionDef)
            yield from _calls(function.body)


def _calls(nodes: list[Any]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            # Executed by others, in a thread perhaps.
            continue
        if isinstance(node, ast.Await) and isinstance(node.value, ast.Call):
            yield from _calls([*node.value.args, *(keyword.value for keyword in node.value.keywords)])
            continue
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)
        yield from _calls(list(ast.iter_child_nodes(node)))
