"""What we use of Orcheo and LangGraph is in one module, and the tested releases are those of pyproject.toml."""

from __future__ import annotations

import ast
import re
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from orcheo_dispatch.worker.orcheo.opening.columns import compare, unknown_migration
from orcheo_dispatch.worker.orcheo.releases import DISTRIBUTIONS, installed, owner
from tests.compat.report import PAGE, written_rows
from tests.compat.sets import SETS
from tests.support.orcheo.orcheo_releases import FEATURES
from tests.support.processes.processes import ROOT

_FOREIGN = {"orcheo", "orcheo_backend", "orcheo_sdk", "langgraph", "langchain_core"}
_COMPAT = "worker/orcheo/compat.py"


def test_one_module_imports_orcheo_and_langgraph() -> None:
    importing = set()
    for path in sorted(ROOT.joinpath("worker").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if any(name.partition(".")[0] in _FOREIGN for name in names):
                importing.add(path.relative_to(ROOT).as_posix())
    assert importing == {_COMPAT}


def test_tested_releases_are_the_bounds_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    bounds = {each.split(">=")[0]: each for each in [*extras["orcheo"], *extras["demo"]]}
    for release in installed():
        assert release.was_tested, release
        lower, upper = sorted(release.tested.split(","), reverse=True)
        assert bounds[release.name] == f"{release.name}{lower},{upper}", "install the package again"
    assert set(DISTRIBUTIONS) <= bounds.keys()


def test_page_has_a_good_result_of_each_set() -> None:
    rows = written_rows()
    assert [row["set"] for row in rows] == [each.name for each in SETS]
    for row in rows:
        assert re.fullmatch(r"[1-9]\d* passed", row["tests"]), row
        assert row["without"] == ("; ".join(each.name for each in FEATURES if not each.is_in(row["orcheo"])) or "-")


def test_bounds_of_the_package_are_the_oldest_and_newest_releases_of_the_page() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rows = written_rows()
    for requirement in [Requirement(each) for each in [*extras["orcheo"], *extras["demo"]]]:
        if requirement.name not in DISTRIBUTIONS:
            continue
        tried = [Version(row[requirement.name]) for row in rows]
        bounds = {each.operator: Version(each.version).release for each in requirement.specifier}
        assert min(tried).release[: len(bounds[">="])] == bounds[">="], requirement
        *front, last = max(tried).release[: len(bounds["<"])]
        assert (*front, last + 1) == bounds["<"], requirement


def test_page_says_what_older_releases_lack() -> None:
    page = PAGE.read_text()
    for feature in FEATURES:
        assert f"\n| {feature.since} | {feature.name} |" in page


def test_no_workflow_is_left_out_of_the_installed_release() -> None:
    assert all(feature.is_here for feature in FEATURES)


@pytest.mark.parametrize(
    ("module", "distribution"),
    [
        ("orcheo", "orcheo"),
        ("orcheo.tracing", "orcheo"),
        ("orcheo_backend.app", "orcheo-backend"),
        ("langgraph.graph.state", "langgraph"),
        ("langgraph.checkpoint.base", "langgraph-checkpoint"),
        ("langgraph.checkpoint.postgres.aio", "langgraph-checkpoint-postgres"),
        ("langgraph.checkpointer", "langgraph"),
    ],
)
def test_module_belongs_to_the_release_that_brings_it(module: str, distribution: str) -> None:
    version = next(release.version for release in installed() if release.name == distribution)
    assert owner(module) == f"{distribution} {version}"


def _columns(**changes: dict[str, Any]) -> list[dict[str, Any]]:
    known = {"id": "text", "is_archived": "boolean", "workspace_id": "text"}
    rows = [{"table_name": "workflows", "column_name": name, "type": kind} for name, kind in known.items()]
    rows += [{"table_name": "workflows", "column_name": name, "type": "text"} for name in changes if name not in known]
    return [{"required": False, **row, **changes.get(row["column_name"], {})} for row in rows]


def test_table_that_is_missing_is_made_and_no_mismatch() -> None:
    assert compare([]).read == ()


def test_columns_that_others_add_to_a_table_that_is_only_read_are_no_mismatch() -> None:
    assert compare(_columns(added={"required": True})).read == ()


def test_column_of_another_type_is_a_mismatch() -> None:
    changed = compare(_columns(is_archived={"type": "text"}))
    assert changed.read == ("workflows.is_archived is text instead of boolean",)


@pytest.mark.parametrize(("newest", "is_known"), [(None, True), (9, True), (10, False)])
def test_migration_beyond_the_last_known_is_a_mismatch(newest: int | None, is_known: bool) -> None:
    assert (unknown_migration(newest) is None) == is_known
