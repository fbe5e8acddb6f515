"""Every statement of the ledger, and values for the parameters of all of them."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any
from uuid import uuid4

from sqlalchemy import TextClause

from orcheo_dispatch.shared.alerts import statements as of_alerts
from orcheo_dispatch.shared.ledger import statements

_MODULES = [
    importlib.import_module(f"{statements.__name__}.{each.name}") for each in pkgutil.iter_modules(statements.__path__)
]
_MODULES.append(of_alerts)
STATEMENTS: dict[str, TextClause] = {
    name: value for module in _MODULES for name, value in vars(module).items() if isinstance(value, TextClause)
}
"""Each by its name."""

_ID = str(uuid4())
PARAMETERS: dict[str, Any] = {
    **dict.fromkeys(("fence", "room", "batch", "limit", "max_attempts", "pid", "concurrency", "running", "times"), 1),
    **dict.fromkeys(("newest", "hour_rows", "sampled"), 1),
    **dict.fromkeys(
        (
            "lease",
            "gap",
            "calm",
            "repeat",
            "missing",
            "retention",
            "older_than",
            "younger_than",
            "seconds",
            "target_delay",
        ),
        1.0,
    ),
    **dict.fromkeys(("id", "worker_id", "dispatcher_id"), _ID),
    **dict.fromkeys(
        ("run_id", "workspace_id", "actor", "reason", "host", "version", "workflow_id", "version_id", "by", "given"),
        "x",
    ),
    **dict.fromkeys(("outcome", "status"), "failed"),
    **{key: ["{}"] for key in ("metadata", "changes")},
    **dict.fromkeys(
        (
            "every_trigger",
            "choose",
            "dry_run",
            "dead",
            "from_start",
            "lost",
            "retrying",
            "waiting",
            "stuck",
            "with_pending",
            "with_running",
            "with_error",
        ),
        False,
    ),
    **{key: ["x"] for key in ("ids", "run_ids")},
    "skipped": ["x"],
    "workspace_ids": [None],
    "chosen": None,
    "fences": [1],
    **dict.fromkeys(("name", "subject"), "x"),
    **{key: ["x"] for key in ("names", "subjects")},
    **{key: [1.0] for key in ("numbers", "holds")},
    **dict.fromkeys(("resolved", "may_resolve"), False),
    **{key: [False] for key in ("refunds", "suspects", "retries", "keeps_slot")},
    "checkpoints": ["x"],
    "interrupts": [1],
    "claims": [1],
    "triggers": ["webhook"],
    "queues": None,
    "consumed": ["x"],
    "outcomes": ["failed"],
    **{key: ["failed"] for key in ("statuses", "actions", "reasons", "errors")},
    "policy": "fail",
    "action": "cancel",
    "kind": "worker",
    **dict.fromkeys(("workflow", "since", "since_ago", "until", "until_ago")),
    **dict.fromkeys(("keys", "per_workflow", "per_workspace", "default_room", "max_queued", "before"), 1),
    **dict.fromkeys(("changed", "refused"), 1),
    **dict.fromkeys(("fields", "details", "answer"), "{}"),
    **dict.fromkeys(("interface",), "command"),
    "why": None,
    **{name: ["x"] for name in ("workspaces", "workflows", "workspaces_begun", "after_workflows")},
    **dict.fromkeys(("after_workspace", "index", "of_workflow", "after", "workspace", "error_class", "queue"), "x"),
    "of_workspace": "",
}
"""One for each name; what a statement finds with them does not matter."""
