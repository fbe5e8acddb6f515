"""Print policies, what is in force for a workflow, the log of operations, and why runs wait."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orcheo_dispatch.ops.operating.explain import Explanation, Field, Limit
from orcheo_dispatch.ops.runs.moments import ago, duration
from orcheo_dispatch.shared.ledger.operators.operations import Entry
from orcheo_dispatch.shared.ledger.operators.policies import FIELDS, Policy
from orcheo_dispatch.shared.ledger.operators.waits import Wait

_ID_SHOWN = 8
_SECONDS = ("timeout_seconds", "rate_seconds", "since", "older_than")
# Without those that are shown together with another.
_SHOWN = [name for name in FIELDS if name not in ("paused_until", "rate_runs", "rate_seconds")]


def fields_text(policy: Policy) -> str:
    """Return the fields that a policy sets, in one line."""
    return ", ".join(f"{name}={value}" for name, value in _fields(policy).items()) or "says nothing"


def policies_view(rows: Sequence[Policy]) -> RenderableType:
    """Return a table of policies."""
    table = Table("scope", "policy", "why", "by", "when (UTC)")
    for row in rows:
        table.add_row(str(row.scope), fields_text(row), row.why or "", row.by, _time(row.at))
    return table


def explanation_view(found: Explanation) -> RenderableType:
    """Return what is in force for a workflow: whether it runs at all, then each field, then its limits."""
    head = Table(show_header=False, box=None, pad_edge=False)
    head.add_row("workflow", found.workflow_id)
    head.add_row("workspace", found.workspace_id or "none")
    head.add_row("pending", str(found.pending))
    head.add_row("workers of its queue", str(found.workers))
    warnings = []
    if found.maintenance:
        warnings.append("maintenance is on: no run is claimed")
    if found.paused:
        until = f" until {_time(found.paused_until)} UTC" if found.paused_until else ""
        warnings.append(f"paused{until}")
    if not found.workers:
        warnings.append(f"no live worker consumes queue {found.queue}")
    fields = Table("field", "value", "decided by", "by", "when (UTC)", "why")
    for each in found.fields:
        at = _time(each.at) if each.at else ""
        fields.add_row(each.field, _value(each.field, each.value), _decided(each), each.by or "", at, each.why or "")
    limits = Table("limits of", "in progress", "claims in the period", "priority", "set by")
    for limit in found.limits:
        limits.add_row(
            limit.scope, _running(limit), _rate(limit), str(limit.priority or 0), limit.variable or _policy_of(limit)
        )
    return Group(*(Text(f"! {each}", style="bold red") for each in warnings), head, "", fields, "", limits)


def operations_view(rows: Sequence[Entry]) -> RenderableType:
    """Return a table of the log of operations."""
    table = Table("no", "when (UTC)", "by", "what", "about", "changed", "why")
    table.columns[1].no_wrap = True
    for row in rows:
        by = row.by if row.interface == "command" else f"{row.by} ({row.interface})"
        changed = f"{row.changed:,}" + (f", {row.refused:,} refused" if row.refused else "")
        what = " ".join(filter(None, (row.action, _details(row))))
        table.add_row(str(row.id), _time(row.at), by, what, _about(row), changed, row.why or "")
    return table


def waits_view(rows: Sequence[Wait]) -> RenderableType:
    """Return a table of pending runs and why they wait."""
    table = Table("run", "workflow", "created", "queue", "reason", "")
    for row in rows:
        table.add_row(row.run_id, row.workflow_id[:8], ago(row.age), row.queue, row.reason, row.sentence)
    return table


def _fields(policy: Policy) -> dict[str, str]:
    found = {name: _value(name, getattr(policy, name)) for name in _SHOWN if getattr(policy, name) is not None}
    if policy.paused_until is not None:
        found["until"] = f"{_time(policy.paused_until)} UTC"
    if policy.rate_runs is not None:
        found["rate"] = f"{policy.rate_runs} in {duration(policy.rate_seconds)}"
    return found


def _value(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(str, value))
    if name in _SECONDS and isinstance(value, int | float):
        return duration(value)
    return str(value)


def _decided(field: Field) -> str:
    if field.scope is not None:
        return "policy of all runs" if field.scope == "all" else f"policy of the {field.scope}"
    return field.variable or "default"


def _running(limit: Limit) -> str:
    return f"{limit.running} of {limit.max_running}" if limit.max_running is not None else f"{limit.running}, no limit"


def _rate(limit: Limit) -> str:
    if limit.rate_runs is None:
        return "no rate"
    return f"{limit.claims} of {limit.rate_runs} in {duration(limit.rate_seconds)}"


def _policy_of(limit: Limit) -> str:
    return "policy" if limit.max_running is not None or limit.rate_runs is not None else ""


def _details(row: Entry) -> str:
    """Return the fields that were set, or the filter that was given, without the scope, which is shown beside it."""
    given = {name: value for name, value in row.details.items() if not value or value not in _scope_of(row)}
    shown = {name: "none" if value is None else _value(name, value) for name, value in given.items()}
    seconds, runs, until = (shown.pop(name, None) for name in ("rate_seconds", "rate_runs", "paused_until"))
    if runs is not None:
        shown["rate"] = f"{runs} in {seconds}" if seconds != "none" else runs
    if until not in (None, "none"):
        shown["until"] = str(until)[:16]
    return " ".join(f"{name}={value}" for name, value in shown.items())


def _scope_of(row: Entry) -> list[object]:
    return [each for each in (row.workflow_id, row.workspace_id) if each]


def _about(row: Entry) -> str:
    """Return the scope, or the run; of many runs the beginning of the first ID and how many more there are."""
    if row.run_id is not None and row.runs == 1:
        return f"run {row.run_id}"
    if row.workflow_id:
        scope = f"workflow {row.workflow_id[:_ID_SHOWN]}"
    else:
        scope = f"workspace {row.workspace_id}" if row.workspace_id else ""
    runs = f"{row.run_id[:_ID_SHOWN]} and {row.runs - 1:,} more" if row.run_id is not None else ""
    return ": ".join(filter(None, (scope, runs))) or "all runs"


def _time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
