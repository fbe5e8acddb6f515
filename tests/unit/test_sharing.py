"""What runs share is made from code alone: no node, no state, no class that a script defines."""

from __future__ import annotations

import builtins
import gc
import importlib
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from orcheo_dispatch.worker.orcheo.compat import StateGraph, load_graph_untimed
from orcheo_dispatch.worker.orcheo.opening.sharing import share_code

_LOADER = "orcheo.graph.ingestion.loader"
_GRAPH = "langgraph.graph.state"

_SCRIPT = """
from typing import TypedDict
from langgraph.graph import END, START, StateGraph

class Item(TypedDict):
    {field}: str
    parts: list["Item"]

class Counter:
    calls = 0
    def __call__(self, state: Item) -> dict:
        self.calls += 1
        return {{}}

def build():
    graph = StateGraph(Item)
    graph.add_node("count", Counter())
    graph.add_edge(START, "count")
    graph.add_edge("count", END)
    return graph
"""


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Share code within a test; yields the scripts that were compiled."""
    loader, graph = importlib.import_module(_LOADER), importlib.import_module(_GRAPH)
    scripts: list[str] = []

    def compile_and_note(source: Any, *arguments: Any) -> Any:
        scripts.append(source)
        return builtins.compile(source, *arguments)

    before = vars(graph)["get_type_hints"]
    unshared = getattr(before, "__wrapped__", before)
    monkeypatch.delattr(loader, "compile", raising=False)
    monkeypatch.setattr(graph, "get_type_hints", unshared)
    monkeypatch.setattr("orcheo_dispatch.worker.orcheo.opening.sharing.compile", compile_and_note, raising=False)
    share_code()
    yield scripts
    del loader.compile


def _build(field: str = "name") -> StateGraph[Any]:
    return load_graph_untimed({"source": _SCRIPT.format(field=field), "entrypoint": "build"})


def test_script_is_compiled_once_and_each_run_has_nodes_of_its_own(compiled: list[str]) -> None:
    first, second = _build(), _build()
    assert len(compiled) == 1
    nodes = [graph.nodes["count"].runnable for graph in (first, second)]
    assert nodes[0] is not nodes[1]
    assert first.state_schema is not second.state_schema
    assert first.channels["name"] is not second.channels["name"]


def test_scripts_that_define_a_class_of_the_same_name_have_each_their_own_state(compiled: list[str]) -> None:
    graphs = [_build("name"), _build("title"), _build("name")]
    assert [sorted(graph.channels) for graph in graphs] == [["name", "parts"], ["parts", "title"], ["name", "parts"]]
    assert len(compiled) == 2


@pytest.mark.usefixtures("compiled")
def test_class_that_a_script_defines_ends_with_its_run() -> None:
    graph = _build()
    schema = weakref.ref(graph.state_schema)
    del graph
    gc.collect()
    assert schema() is None


def test_script_that_cannot_be_compiled_is_an_error_each_time(compiled: list[str]) -> None:
    for _ in range(2):
        with pytest.raises(Exception, match="Compilation error"):
            load_graph_untimed({"source": "def build(:", "entrypoint": "build"})
    assert len(compiled) == 2


@pytest.mark.usefixtures("compiled")
def test_type_hints_of_an_imported_class_are_resolved_once_and_cannot_be_changed_for_others() -> None:
    state: Any = importlib.import_module("orcheo.graph.state").State
    hints = vars(importlib.import_module(_GRAPH))["get_type_hints"]
    found = hints(state, include_extras=True)
    again = hints(state, include_extras=True)
    assert found == again
    assert all(found[name] is again[name] for name in found)
    found.clear()
    assert hints(state, include_extras=True) == again


def test_code_is_shared_once_however_often_it_is_asked_for(compiled: list[str]) -> None:
    before = vars(importlib.import_module(_GRAPH))["get_type_hints"]
    share_code()
    assert vars(importlib.import_module(_GRAPH))["get_type_hints"] is before
    _build()
    assert len(compiled) == 1
