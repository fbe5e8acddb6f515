"""The findings of a check. Separate from the checks, which import many libraries."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Grade(StrEnum):
    """How a finding is."""

    OK = "ok"
    WARN = "warn"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check."""

    what: str
    grade: Grade
    found: str
    mend: str = ""
    exit_code: int = 1

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints; these names are stable."""
        return {key: value for key, value in asdict(self).items() if key != "exit_code"}
