"""Workflows use actions by their full commit, since a tag can be moved to another one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.supply.lock import ROOT

_WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.y*ml"))
_USES = re.compile(r"^\s*(?:- )?uses:\s*(.*)$", re.MULTILINE)
_PINNED = re.compile(r"(?P<action>[\w.-]+/[\w./-]+)@(?P<commit>[0-9a-f]{40}) # (?P<version>v\d+\.\d+\.\d+)")


def _unpinned(text: str) -> list[str]:
    return [each for each in _USES.findall(text) if not _PINNED.fullmatch(each)]


@pytest.mark.parametrize("path", _WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_and_named_by_version(path: Path) -> None:
    text = path.read_text()
    assert text.count("uses:") == len(_USES.findall(text))
    assert _unpinned(text) == []


def test_one_version_of_an_action_is_one_commit() -> None:
    found = {match.groups() for path in _WORKFLOWS for match in _PINNED.finditer(path.read_text())}
    assert len({action for action, _, _ in found}) == len(found)


@pytest.mark.parametrize(
    "uses",
    [
        "actions/checkout@v4",
        "actions/checkout@main",
        "actions/checkout@11bd719",
        "actions/checkout@11bd71901bbe5b1630ceea73d27597364c9af683",
        "docker://alpine:3",
    ],
)
def test_action_that_is_not_pinned_is_found(uses: str) -> None:
    assert _unpinned(f"steps:\n      - uses: {uses}\n") == [uses]


def test_workflows_may_read_alone_and_keep_no_credentials() -> None:
    for path in _WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}, path.name
        for job in workflow["jobs"].values():
            checkouts = [each for each in job["steps"] if "actions/checkout@" in each.get("uses", "")]
            assert all(each["with"]["persist-credentials"] is False for each in checkouts), path.name


def test_updates_of_actions_are_proposed() -> None:
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    assert "github-actions" in {each["package-ecosystem"] for each in updates}
