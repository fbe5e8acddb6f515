"""What is installed has a licence that is allowed, and a report that says nothing is no good news."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.supply.__main__ import FAILED, UNKNOWN, judged
from tests.supply.licences import Distribution, installed, is_allowed, needless, refused, rules

_RULES = rules()
_MIT = frozenset({"MIT", "0BSD"})
_KNOWN: dict[str, Any] = {"name": "a", "version": "1", "vulns": []}
_SKIPPED: dict[str, Any] = {"name": "b", "skip_reason": "Dependency not found"}
_WRONG: dict[str, Any] = {"name": "c", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}


def test_each_licence_is_allowed_or_has_a_reason() -> None:
    found = installed(_RULES)
    assert len(found) > 200
    assert [reason for each in found if (reason := refused(each, _RULES))] == []
    assert needless(found, _RULES) == []


def test_reason_for_development_does_not_allow_a_licence_at_run_time() -> None:
    parser = Distribution("pglast", "8.8", "GPL-3.0-or-later", runtime=False)
    assert refused(parser, _RULES) is None
    assert "no reason in [runtime]" in (refused(replace(parser, runtime=True), _RULES) or "")
    assert "no reason in [development]" in (refused(replace(parser, name="other"), _RULES) or "")


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("MIT AND 0BSD", True),
        ("MIT AND GPL-3.0-only", False),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only AND MIT OR 0BSD", True),
        ("GPL-3.0-only AND (MIT OR 0BSD)", False),
        ("unknown", False),
        ("", False),
    ],
)
def test_expression_is_allowed_if_one_alternative_is(licence: str, allowed: bool) -> None:
    assert is_allowed(licence, _MIT) is allowed


@pytest.mark.parametrize(
    ("dependencies", "code", "line"),
    [
        ([_KNOWN], 0, "vulnerabilities: none known in 1 distributions"),
        ([_KNOWN, _SKIPPED], UNKNOWN, "the service does not know 1 of 2 distributions, such as b"),
        ([], UNKNOWN, "does not know 0 of 0 distributions"),
        ([_KNOWN, _SKIPPED, _WRONG], FAILED, "c 1: PYSEC-1, fixed in 2"),
    ],
)
def test_vulnerabilities_that_nobody_could_name_are_unknown(
    dependencies: list[dict[str, Any]], code: int, line: str
) -> None:
    found, lines = judged({"dependencies": dependencies}, "")
    assert found == code
    assert line in lines[0]


def test_service_that_cannot_be_asked_is_one_loud_line() -> None:
    code, lines = judged(None, "connection refused")
    assert code == UNKNOWN
    assert lines == ["VULNERABILITIES UNKNOWN (exit code 3): the service could not be asked: connection refused"]
