"""docs/json.md lists what `--json` prints, with its types: the names are a promise."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from orcheo_dispatch.dispatcher.poll import PollReport
from orcheo_dispatch.ops.adoption.adoption import Found
from orcheo_dispatch.ops.adoption.env_advice import Advice
from orcheo_dispatch.ops.adoption.leaked_slots import LeakedSlots
from orcheo_dispatch.ops.adoption.leftovers import LeftRun
from orcheo_dispatch.ops.host.findings import Finding
from orcheo_dispatch.ops.operating.explain import Explanation, Field, Limit
from orcheo_dispatch.ops.operating.pauses import Switched
from orcheo_dispatch.ops.runs.list import RunRow
from orcheo_dispatch.ops.runs.story import Story
from orcheo_dispatch.ops.runs.unclaimed import Unclaimed
from orcheo_dispatch.shared.alerts.book import OpenAlert
from orcheo_dispatch.shared.ledger.isolations import Isolated
from orcheo_dispatch.shared.ledger.operators.operations import Operation
from orcheo_dispatch.shared.ledger.operators.pending import PendingWorkflow
from orcheo_dispatch.shared.ledger.operators.policies import Policy
from orcheo_dispatch.shared.ledger.operators.repairs import Repair
from orcheo_dispatch.shared.ledger.operators.waits import Wait
from orcheo_dispatch.shared.ledger.status import Paused, ProcessRow, Status
from orcheo_dispatch.shared.ledger.story import Event, Who
from orcheo_dispatch.shared.schema.migrate import Migration

_DOCUMENT = (Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
_ROW = re.compile(r"^\| `(?P<name>[a-z_]+)` \| (?P<type>[^|]+) \|", re.MULTILINE)
_TYPES = {
    "str": "text",
    "int": "integer",
    "float": "number",
    "bool": "true or false",
    "datetime": "time",
    "Grade": "text",
    "Verdict": "text",
    "Who": "object",
    "list[LeftRun]": "list of objects",
    "list[LeakedSlots]": "list of objects",
    "dict[str, int]": "object of integers",
    "list[str]": "list of texts",
    "tuple[str, ...]": "list of texts",
    "list[Event]": "list of objects",
    "list[ProcessRow]": "list of objects",
    "list[Isolated]": "list of objects",
    "list[Paused]": "list of objects",
    "list[PendingWorkflow]": "list of objects",
    "list[Field]": "list of objects",
    "list[Limit]": "list of objects",
    "dict[str, Any]": "object",
    "Any": "true or false or number or text",
}


@pytest.mark.parametrize(
    ("heading", "printed", "kept_back"),
    [
        ("## status", Status, set()),
        ("### processes", ProcessRow, set()),
        ("### paused", Paused, set()),
        ("### pending_workflows", PendingWorkflow, set()),
        ("## runs --pending", Wait, set()),
        ("## policy explain", Explanation, set()),
        ("### fields", Field, set()),
        ("### limits", Limit, set()),
        ("## pause, unpause, maintenance", Switched, set()),
        ("## operations", Operation, set()),
        ("## runs", RunRow, set()),
        ("## runs --unclaimed", Unclaimed, set()),
        ("## run", Story, set()),
        ("### dispatcher, worker", Who, set()),
        ("### events", Event, set()),
        ("## check", Finding, {"exit_code"}),
        ("## poll", PollReport, {"next_delay"}),
        ("## migrate", Migration, set()),
        ("## cancel, fail, requeue, answer", Repair, set()),
        ("## isolate", Isolated, set()),
        ("## alerts", OpenAlert, set()),
        ("### settings", Advice, set()),
        ("### left_behind", Found, set()),
        ("### running, pending", LeftRun, set()),
        ("### slots", LeakedSlots, set()),
    ],
)
def test_document_lists_each_name_with_its_type(heading: str, printed: type, kept_back: set[str]) -> None:
    section = re.split(r"^#+ ", _DOCUMENT.split(f"\n{heading}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    documented = {row["name"]: row["type"].strip() for row in _ROW.finditer(section)}
    made = {each.name: _type(str(each.type)) for each in fields(printed) if each.name not in kept_back}
    assert documented == made


def test_document_lists_each_name_of_a_policy() -> None:
    section = _DOCUMENT.split("\n## policy list, set, clear\n")[1].split("\n## ")[0]
    documented = [row["name"] for row in _ROW.finditer(section)]
    assert documented == ["scope", *(each.name for each in fields(Policy))]


def _type(annotation: str) -> str:
    return " or ".join("null" if part == "None" else _TYPES[part] for part in annotation.split(" | "))
