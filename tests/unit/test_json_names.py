"""docs/json.md lists what `--json` prints, with its types: the names are a promise."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from dispatcher.report import PollReport
from ops.adoption import Found
from ops.env_advice import Advice
from ops.findings import Finding
from ops.leaked_slots import LeakedSlots
from ops.leftovers import LeftRun
from ops.repair import Repair
from ops.run_list import RunRow
from ops.run_story import Event, Story, Who
from ops.unclaimed import Unclaimed
from shared.isolations import Isolated
from shared.migrate import Migration
from shared.queries import ProcessRow, Status

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
}


@pytest.mark.parametrize(
    ("heading", "printed", "kept_back"),
    [
        ("## status", Status, set()),
        ("### processes", ProcessRow, set()),
        ("## runs", RunRow, set()),
        ("## runs --unclaimed", Unclaimed, set()),
        ("## run", Story, set()),
        ("### dispatcher, worker", Who, set()),
        ("### events", Event, set()),
        ("## check", Finding, {"exit_code"}),
        ("## poll", PollReport, {"next_delay"}),
        ("## migrate", Migration, set()),
        ("## cancel, fail, requeue", Repair, set()),
        ("## isolate", Isolated, set()),
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


def _type(annotation: str) -> str:
    return " or ".join("null" if part == "None" else _TYPES[part] for part in annotation.split(" | "))
