"""The workflows that are compared: taken in kind from Orcheo's examples and templates."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from tests.stock.differences import LONG_ERRORS, MUTE_ERRORS, PASSWORDS, Difference
from tests.support.orcheo.orcheo_releases import DISPATCHED_CONFIG, NO_EGRESS, Feature


class Trigger(Enum):
    """How a run of a workflow is made."""

    WEBHOOK = auto()
    MANUAL = auto()
    LABELLED = auto()
    """By hand, with a label, as Orcheo's MCP server does."""
    CRON = auto()
    LISTENER = auto()


class Between(Enum):
    """What happens to a run or its workflow after its creation and before its execution."""

    ARCHIVED = auto()
    WORKFLOW_GONE = auto()
    VERSION_GONE = auto()
    BAD_CONFIG = auto()
    """The run gets a runnable config that is not valid, as earlier releases of the API took it."""


class Stored(Enum):
    """How the graph of a version is stored."""

    SCRIPT = auto()
    FROZEN = auto()
    """As in the restricted mode: code nodes run in the WebAssembly sandbox."""
    JSON = auto()
    """Nodes and edges, as earlier releases had it; this one executes none."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A workflow, how a run of it is made, and where ours is meant to differ from stock's."""

    source: str
    """A file in the folder `workflows`, without its ending."""
    entrypoint: str | None = "build"
    inputs: dict[str, Any] = field(default_factory=dict)
    """Besides where the servers are."""
    trigger: Trigger = Trigger.WEBHOOK
    stored: Stored = Stored.SCRIPT
    config: dict[str, Any] | None = None
    """The version's runnable config."""
    run_config: dict[str, Any] | None = None
    """The run's own."""
    between: Between | None = None
    status: str = "succeeded"
    """With the stock worker, so that a workflow that fails by mistake is no comparison."""
    differs: Difference | None = None
    instead: str | None = None
    """A workflow whose run with the stock worker leaves what a run of this one is meant to leave with ours."""
    needs_mongodb: bool = False
    needs: Feature | None = None
    """What Orcheo itself must have for it: left out where the installed release has it not."""

    @property
    def is_here(self) -> bool:
        """Whether the installed release of Orcheo has all that it needs."""
        return self.needs is None or self.needs.is_here


_NESTED = {"b": {"c": [[], {}, [None]]}, "a": "2026-11-23"}
_ITEMS: list[Any] = [1, -2.5, 1.5e-7, 2**60, True, None, "", {"a": []}]
_CHAT = {"platform": "telegram", "message": {"chat_id": "7", "text": "again"}, "reply_target": {"chat_id": "7"}}
_CONFIG = {
    "tags": ["Nightly", "nightly ", "two words"],
    "metadata": {"team": "search", "n": 1},
    "run_name": " the run ",
    "configurable": {"system_prompt": "Be brief.", "top_k": 5},
    "recursion_limit": 50,
    "max_concurrency": 2,
}
_OWN_CONFIG = {"tags": ["own"], "metadata": {"n": 2}, "configurable": {"top_k": 9}, "recursion_limit": 10}

KINDS: dict[str, Kind] = {
    # Control flow.
    "greet": Kind("greet", inputs={"name": "Ada \u00e9\u4e2d\U0001f600 {{not.a.template}}"}),
    "branches": Kind("branches", inputs={"name": "x" * 100_000, "count": 3, "items": _ITEMS, "nested": _NESTED}),
    "switch": Kind("kinds/logic", "switch", {"colour": "BLUE"}),
    "switch-default": Kind("kinds/logic", "switch", {"colour": "Red"}),
    "loop": Kind("kinds/logic", "loop", {"rounds": 5}),
    "parallel": Kind("kinds/logic", "parallel", {"name": "Ada"}),
    "send": Kind("kinds/logic", "send", {"items": [3, 1, 2]}),
    "command": Kind("kinds/logic", "command", {"count": 3}),
    "nested": Kind("kinds/logic", "nested"),
    "sub-workflow": Kind("kinds/logic", "sub_workflow", {"name": "Ada"}),
    "data": Kind("kinds/logic", "data", {"text": '{"a": [{"b": "x"}, {"b": null}]}'}),
    "default-entrypoint": Kind("kinds/logic", None, {"name": "Ada"}),
    # Agents.
    "agent": Kind("kinds/agents", "chat", {"message": "hello"}, trigger=Trigger.MANUAL, config=_CONFIG),
    "agent-tools": Kind("kinds/agents", "tools", {"message": "use them"}, trigger=Trigger.MANUAL),
    "agent-router": Kind("kinds/agents", "router", {"message": "my bill"}, trigger=Trigger.MANUAL),
    "agent-history": Kind("kinds/agents", "remembering", _CHAT, trigger=Trigger.MANUAL),
    "agent-error": Kind(
        "kinds/agents",
        "chat",
        {"message": "overload"},
        trigger=Trigger.MANUAL,
        config=_CONFIG,
        status="failed",
    ),
    # Code nodes, in both modes.
    "code": Kind("kinds/outputs", "code", {"name": "Ada"}),
    "restricted": Kind("kinds/restricted", None, {"name": "Eulalia", "fail": "no"}, stored=Stored.FROZEN),
    "restricted-error": Kind(
        "kinds/restricted", None, {"name": "x", "fail": "yes"}, stored=Stored.FROZEN, status="failed"
    ),
    "json-graph": Kind("greet", stored=Stored.JSON, status="failed"),
    # Outside.
    "http": Kind("kinds/outside", "http", {"name": "a b&c"}),
    "http-error": Kind("kinds/outside", "http_error", status="failed"),
    "feed": Kind("kinds/outside", "feed"),
    "mongodb": Kind("kinds/outside", "mongodb", needs_mongodb=True),
    "files": Kind("kinds/outside", "files", {"text": "a line\n"}),
    "credentials": Kind("kinds/outside", "credentials"),
    "no-credential": Kind("kinds/outside", "no_credential", status="failed"),
    "plugin": Kind("kinds/outside", "plugin", status="failed", instead="inline"),
    "inline": Kind("kinds/outside", "inline"),
    # Errors.
    "fail": Kind("fail", inputs={"name": "Bob\nat postgresql://ada:hunter2@db/x"}, status="failed", differs=PASSWORDS),
    "fail-before": Kind("kinds/errors", "before", status="failed"),
    "fail-after": Kind("kinds/errors", "after", status="failed"),
    "fail-in-branch": Kind("kinds/errors", "in_branch", status="failed"),
    "fail-in-subgraph": Kind("kinds/errors", "in_subgraph", status="failed", differs=MUTE_ERRORS),
    "fail-at-length": Kind("kinds/errors", "at_length", status="failed", differs=LONG_ERRORS),
    "fail-in-edge": Kind("kinds/errors", "in_edge", status="failed"),
    "endless": Kind("kinds/errors", "endless", config={"recursion_limit": 7}, status="failed"),
    "unresolved": Kind("kinds/errors", "unresolved"),
    "no-graph": Kind("kinds/errors", "entrypoint", status="failed"),
    "no-entrypoint": Kind("kinds/errors", "nothing_of_this_name", status="failed"),
    "dangling": Kind("kinds/errors", "dangling", status="failed"),
    # Outputs.
    "types": Kind("kinds/outputs", "types"),
    "strings": Kind("kinds/outputs", "strings"),
    "not-a-number": Kind("kinds/outputs", "not_a_number", status="failed", instead="null"),
    "null": Kind("kinds/outputs", "null"),
    "nul": Kind("kinds/outputs", "nul", status="failed", instead="replaced"),
    "replaced": Kind("kinds/outputs", "replaced"),
    "huge-integer": Kind("kinds/outputs", "huge_integer", status="failed"),
    "messages": Kind("kinds/outputs", "messages"),
    # Questions to people.
    "human": Kind("kinds/outputs", "human", {"name": "Ada"}),
    "interrupted": Kind("kinds/outputs", "interrupted"),
    # Config, triggers.
    "config": Kind("kinds/outputs", "config", config=_CONFIG),
    "manual": Kind(
        "kinds/outputs",
        "config",
        {"name": "Ada"},
        trigger=Trigger.MANUAL,
        config=_CONFIG,
        run_config=_OWN_CONFIG,
        needs=DISPATCHED_CONFIG,
    ),
    "labelled": Kind("kinds/outputs", "config", {"name": "Ada"}, trigger=Trigger.LABELLED, config=_CONFIG),
    "cron": Kind("kinds/outputs", "config", trigger=Trigger.CRON),
    "bad-config": Kind("kinds/outputs", "config", between=Between.BAD_CONFIG, status="failed"),
    "listener": Kind("kinds/outputs", "config", _CHAT, trigger=Trigger.LISTENER),
    "run-config": Kind(
        "kinds/outputs", "config", _CHAT, trigger=Trigger.LISTENER, config=_CONFIG, run_config=_OWN_CONFIG
    ),
    # Gone.
    "archived": Kind("greet", between=Between.ARCHIVED, status="cancelled"),
    "no-workflow": Kind("greet", between=Between.WORKFLOW_GONE, status="cancelled"),
    "no-version": Kind("greet", between=Between.VERSION_GONE, status="failed"),
}

RESTRICTED_KINDS: dict[str, Kind] = {
    "restricted": Kind("kinds/restricted", None, {"name": "Eulalia", "fail": "no"}, stored=Stored.FROZEN),
    # Of a version that was stored before the mode was changed: no request may leave for this machine.
    "no-egress": Kind("kinds/outside", "http", {"name": "a"}, status="failed", needs=NO_EGRESS),
    "no-feed": Kind("kinds/outside", "feed", status="failed", needs=NO_EGRESS),
}
"""Executed by workers in restricted mode."""
