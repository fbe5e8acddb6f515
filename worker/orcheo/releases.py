"""The installed releases of Orcheo and LangGraph, and the ones that this release was tested with.

The bounds are those of the extras in pyproject.toml. Imports neither Orcheo nor LangGraph.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

from packaging.requirements import Requirement

OWN = "orcheo-dispatch"
DISTRIBUTIONS = (
    "orcheo-backend",
    "orcheo",
    "orcheo-sdk",
    "langgraph",
    "langgraph-checkpoint",
    "langgraph-checkpoint-postgres",
)
OPTIONAL = "orcheo-sdk"
"""A client, which a worker does not need."""
REMEDY = f"pip install --upgrade '{OWN}[orcheo]'"

# The longest matching prefix of a module's name decides.
_OWNERS = {
    "orcheo": "orcheo",
    "orcheo_backend": "orcheo-backend",
    "orcheo_sdk": "orcheo-sdk",
    "langgraph": "langgraph",
    "langgraph.checkpoint": "langgraph-checkpoint",
    "langgraph.store": "langgraph-checkpoint",
    "langgraph.checkpoint.postgres": "langgraph-checkpoint-postgres",
    "langgraph.store.postgres": "langgraph-checkpoint-postgres",
}


@dataclass(frozen=True, slots=True)
class Release:
    """An installed distribution, and the versions of it that were tested."""

    name: str
    version: str
    tested: str
    """In the form of a requirement, such as `<0.40,>=0.38`; empty if unbounded."""
    was_tested: bool

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def installed() -> list[Release]:
    """Return the installed releases, in the order of `DISTRIBUTIONS`."""
    tested = _tested()
    found = []
    for name in DISTRIBUTIONS:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        specifier = tested[name].specifier if name in tested else None
        contains = specifier is None or specifier.contains(version, prereleases=True)
        found.append(Release(name, version, str(specifier or ""), contains))
    return found


def missing() -> list[str]:
    """Return the distributions that a worker needs and that are not installed."""
    present = {release.name for release in installed()}
    return [name for name in DISTRIBUTIONS if name != OPTIONAL and name not in present]


def untested() -> str | None:
    """Return which installed releases are outside the tested versions, and those versions; None if none is."""
    outside = [f"{release} (tested: {release.tested})" for release in installed() if not release.was_tested]
    return ", ".join(outside) or None


def owner(module: str) -> str:
    """Return the release that a module belongs to, with its version: `langgraph-checkpoint 4.3.2`."""
    prefix = max((each for each in _OWNERS if f"{module}.".startswith(f"{each}.")), key=len, default=None)
    if prefix is None:
        return module.partition(".")[0]
    name = _OWNERS[prefix]
    return next((str(release) for release in installed() if release.name == name), name)


def _tested() -> dict[str, Requirement]:
    try:
        lines = importlib.metadata.requires(OWN) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    requirements = [Requirement(line) for line in lines]
    return {each.name: each for each in requirements if each.name in DISTRIBUTIONS}
