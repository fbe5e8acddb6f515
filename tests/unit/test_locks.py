"""The locks agree with pyproject.toml and constraints.txt, and every file that they let in has a hash."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.supply.lock import BASE, LOCKS, ROOT, entries, read

_PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
_LOCKED = {each.name: each for lock in LOCKS for each in read(lock)}


def test_each_distribution_is_locked_once_and_by_hash() -> None:
    for added in LOCKS[len(BASE) :]:
        names = [each.name for lock in (*BASE, added) for each in read(lock)]
        assert sorted(names) == sorted(set(names))
    assert [each.name for each in _LOCKED.values() if not each.hashes] == []


def test_no_lock_lists_what_only_other_platforms_install() -> None:
    """A lock that adds to `.venv` would leave it out, although it may need it on each platform."""
    markers = [each.marker for lock in LOCKS for each in read(lock) if each.marker is not None]
    here = ("linux", "darwin")
    assert [each for each in markers if not any(Marker(each).evaluate({"sys_platform": name}) for name in here)] == []


def test_locks_have_the_versions_of_constraints() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    assert {name: entry.version for name, entry in _LOCKED.items()} == pins, "run 'make lock'"


def test_locks_satisfy_what_the_project_asks_for() -> None:
    unsatisfied = [str(each) for each in _asked_for() if not _satisfied(each)]
    assert unsatisfied == [], "run 'make lock'"


def test_lock_of_what_is_installed_first_asks_for_nothing_else() -> None:
    first = {each.name for each in read(LOCKS[0])}
    assert first == {"pip", "setuptools", "uv"}
    assert [each for name in first for each in _required_by(name) if canonicalize_name(each.name) not in first] == []


def test_what_locked_distributions_require_is_locked() -> None:
    installed = [name for lock in BASE for name in (each.name for each in read(lock)) if _is_installed(name)]
    assert len(installed) > 200
    missing = {f"{name} requires {each}" for name in installed for each in _required_by(name) if not _satisfied(each)}
    assert missing == set()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: str(lock.file))
def test_lock_names_no_index(lock: Any) -> None:
    text = (ROOT / lock.file).read_text()
    assert "://" not in text
    assert not re.search(
        r"^\s*-", re.sub(r"^    --hash=sha256:[0-9a-f]{64}(?: \\)?$", "", text, flags=re.MULTILINE), re.MULTILINE
    )


@pytest.mark.parametrize("line", ["--index-url https://example.org/simple", "ruff>=1", "-e .", "ruff @ file:///x"])
def test_line_that_is_none_of_a_locks_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not a line of a lock"):
        entries(f"{line}\n")


def test_makefile_installs_the_locks_by_hash() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^HASHES \?= yes$", makefile, re.MULTILINE)
    used = set(re.findall(r"requirements\.(?:\w+\.)?lock", makefile))
    assert used == {lock.file for lock in LOCKS}


def _asked_for() -> Iterator[Requirement]:
    project, groups = _PROJECT["project"], _PROJECT["dependency-groups"]
    texts = [*project["dependencies"], *_PROJECT["build-system"]["requires"]]
    texts += [each for extra in project["optional-dependencies"].values() for each in extra]
    texts += [each for group in groups.values() for each in group if isinstance(each, str)]
    yield from (each for each in map(Requirement, texts) if each.name != project["name"])


def _satisfied(asked: Requirement) -> bool:
    entry = _LOCKED.get(canonicalize_name(asked.name))
    return entry is not None and asked.specifier.contains(entry.version, prereleases=True)


def _is_installed(name: str) -> bool:
    try:
        return importlib.metadata.version(name) == _LOCKED[name].version
    except importlib.metadata.PackageNotFoundError:
        return False


def _required_by(name: str) -> Iterator[Requirement]:
    for each in map(Requirement, importlib.metadata.requires(name) or []):
        if each.marker is None or each.marker.evaluate({"extra": ""}):
            yield each
