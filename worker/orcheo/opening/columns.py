"""The columns of Orcheo's and LangGraph's tables that our statements name.

Imports neither Orcheo nor LangGraph, so that a host without them can check as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

NEWEST_CHECKPOINT_MIGRATION = 9
"""LangGraph's latest migration whose tables are described here."""

_TEXT, _JSON, _TIME = "text", "jsonb", "timestamp with time zone"

# Without these no run can be executed.
_READ: Mapping[str, Mapping[str, str]] = {
    "workflow_runs": {
        "id": _TEXT,
        "workflow_id": _TEXT,
        "workflow_version_id": _TEXT,
        "workspace_id": _TEXT,
        "triggered_by": _TEXT,
        "status": _TEXT,
        "payload": _JSON,
        "created_at": _TIME,
        "updated_at": _TIME,
    },
    "workflows": {"id": _TEXT, "is_archived": "boolean", "workspace_id": _TEXT},
    "workflow_versions": {"id": _TEXT, "payload": _JSON, "updated_at": _TIME},
    "checkpoints": {"thread_id": _TEXT},
    "execution_history": {"execution_id": _TEXT},
}
_CHECKPOINTS: Mapping[str, Mapping[str, str]] = {
    "checkpoints": {
        "thread_id": _TEXT,
        "checkpoint_ns": _TEXT,
        "checkpoint_id": _TEXT,
        "parent_checkpoint_id": _TEXT,
        "checkpoint": _JSON,
        "metadata": _JSON,
    },
    "checkpoint_blobs": {
        "thread_id": _TEXT,
        "checkpoint_ns": _TEXT,
        "channel": _TEXT,
        "version": _TEXT,
        "type": _TEXT,
        "blob": "bytea",
    },
    "checkpoint_writes": {
        "thread_id": _TEXT,
        "checkpoint_ns": _TEXT,
        "checkpoint_id": _TEXT,
        "task_id": _TEXT,
        "task_path": _TEXT,
        "idx": "integer",
        "channel": _TEXT,
        "type": _TEXT,
        "blob": "bytea",
    },
}
_TRACES: Mapping[str, Mapping[str, str]] = {
    "execution_history": {
        "execution_id": _TEXT,
        "workflow_id": _TEXT,
        "workspace_id": _TEXT,
        "inputs": _JSON,
        "runnable_config": _JSON,
        "tags": _JSON,
        "callbacks": _JSON,
        "metadata": _JSON,
        "run_name": _TEXT,
        "status": _TEXT,
        "started_at": _TIME,
        "completed_at": _TIME,
        "error": _TEXT,
        "trace_started_at": _TIME,
        "trace_completed_at": _TIME,
        "trace_last_span_at": _TIME,
    },
    "execution_history_steps": {"execution_id": _TEXT, "step_index": "integer", "at": _TIME, "payload": _JSON},
}

SELECT_COLUMNS = """
SELECT t.name AS table_name, a.attname AS column_name, format_type(a.atttypid, NULL) AS type,
       a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND a.attgenerated = '' AS required
  FROM (VALUES ('workflow_runs'), ('workflows'), ('workflow_versions'), ('checkpoints'), ('checkpoint_blobs'),
               ('checkpoint_writes'), ('checkpoint_migrations'), ('execution_history'), ('execution_history_steps'))
       AS t(name)
  JOIN pg_attribute AS a ON a.attrelid = to_regclass(t.name) AND a.attnum > 0 AND NOT a.attisdropped
"""
SELECT_MIGRATION = "SELECT max(v) AS v FROM checkpoint_migrations"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The differences from the tables that this release knows, one phrase each; empty if there are none."""

    read: tuple[str, ...] = ()
    """Differences in the columns without which no run can be executed."""
    checkpoints: tuple[str, ...] = ()
    """Differences in the tables of checkpoints."""
    traces: tuple[str, ...] = ()
    """Differences in the tables of traces."""


def compare(rows: Iterable[Mapping[str, Any]]) -> Mismatch:
    """Compare the rows of `SELECT_COLUMNS` with what this release knows. A missing table is no mismatch."""
    tables: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        tables.setdefault(row["table_name"], {})[row["column_name"]] = row
    return Mismatch(
        read=_differences(tables, _READ, written=False),
        checkpoints=_differences(tables, _CHECKPOINTS, written=True),
        traces=_differences(tables, _TRACES, written=True),
    )


def has_migrations(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether `SELECT_MIGRATION` can be executed, given the rows of `SELECT_COLUMNS`."""
    return any(row["table_name"] == "checkpoint_migrations" and row["column_name"] == "v" for row in rows)


def unknown_migration(newest: int | None) -> str | None:
    """Return what is wrong if LangGraph has migrated its tables further than described here, otherwise None."""
    if newest is None or newest <= NEWEST_CHECKPOINT_MIGRATION:
        return None
    return f"checkpoint_migrations is at {newest}, known up to {NEWEST_CHECKPOINT_MIGRATION}"


def _differences(
    tables: Mapping[str, Mapping[str, Mapping[str, Any]]], known: Mapping[str, Mapping[str, str]], *, written: bool
) -> tuple[str, ...]:
    found = []
    for table, columns in known.items():
        present = tables.get(table)
        if not present:
            continue
        for column, kind in columns.items():
            if column not in present:
                found.append(f"{table} has no column {column}")
            elif present[column]["type"] != kind:
                found.append(f"{table}.{column} is {present[column]['type']} instead of {kind}")
        if written:
            unknown = (column for column, row in present.items() if row["required"] and column not in columns)
            found += [f"{table} requires the unknown column {column}" for column in sorted(unknown)]
    return tuple(found)
