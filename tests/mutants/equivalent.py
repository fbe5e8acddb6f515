"""The list of mutants that change nothing that could be observed, each with the reason."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.statements import Statement

_LIST = Path(__file__).with_name("equivalent.toml")


@dataclass(frozen=True, slots=True)
class Listed:
    """The mutants of one statement that are listed, each with the reason, and the digest that the statement had."""

    digest: str
    reasons: Mapping[str, str]


def listed(path: Path = _LIST) -> dict[str, Listed]:
    """Return the list by key of the statement."""
    found: dict[str, Listed] = {}
    for key, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
        reasons = {change: group["why"] for group in table["mutants"] for change in group["changes"]}
        found[key] = Listed(table["digest"], reasons)
    return found


def stale(entries: Mapping[str, Listed], statements: Mapping[str, Statement]) -> list[str]:
    """Return what is wrong with the list: statements that have changed since, and mutants that are no more."""
    wrong = []
    for key, entry in entries.items():
        if key not in statements:
            wrong.append(f"{key} is no statement")
        elif statements[key].digest != entry.digest:
            wrong.append(f"{key} has changed: judge its mutants again, then set digest = {statements[key].digest!r}")
        else:
            changes = {mutant.change for mutant in statements[key].mutants()}
            wrong += [f"{key} has no mutant {change!r}" for change in entry.reasons if change not in changes]
            wrong += [f"{key}: no reason for {change!r}" for change, why in entry.reasons.items() if not why.strip()]
    return wrong
