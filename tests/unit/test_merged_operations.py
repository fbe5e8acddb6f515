"""The batches of one bulk operation are one entry; what differs, or was done later, is another one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orcheo_dispatch.shared.ledger.operators.operations import Entry, merge_entries

_AT = datetime(2026, 11, 27, 12, tzinfo=UTC)
_FIRST = Entry(
    id=1,
    at=_AT,
    by="ada",
    interface="command",
    action="requeue",
    workspace_id="acme",
    workflow_id="w",
    runs=100,
    run_id="r1",
    details={"dead": True},
    changed=100,
    refused=1,
    why="supplier is back",
)


def test_the_batches_of_a_command_are_one_entry_of_all_runs() -> None:
    batches = [
        replace(_FIRST, id=number, at=_AT + timedelta(minutes=4 * number), run_id=f"r{number}") for number in (3, 2, 1)
    ]
    expected = replace(_FIRST, at=_AT + timedelta(minutes=12), runs=300, changed=300, refused=3)
    assert merge_entries(batches) == [expected]


def test_a_batch_of_another_workflow_is_merged_without_a_workflow() -> None:
    (merged,) = merge_entries([replace(_FIRST, id=2, workflow_id="v"), _FIRST])
    assert (merged.workflow_id, merged.workspace_id, merged.runs) == (None, "acme", 200)


@pytest.mark.parametrize(
    "change",
    [
        {"by": "eve"},
        {"interface": "page"},
        {"action": "cancel"},
        {"details": {"dead": False}},
        {"why": "again"},
        {"at": _AT + timedelta(minutes=6)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_differs_is_another_entry(change: dict[str, Any]) -> None:
    assert len(merge_entries([replace(_FIRST, id=2, **change), _FIRST])) == 2


def test_changes_of_policies_are_never_merged() -> None:
    change = replace(_FIRST, action="policy set")
    assert merge_entries([change, change]) == [change, change]
