"""The licence of each installed distribution, and whether `licences.toml` allows it."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.supply.lock import LOCKS, read

PROJECT = "orcheo-dispatch"
EXTRAS = ("orcheo", "embedded", "traces", "alerts", "demo")
"""Whatever an installation of the wheel may ask for: all of it counts as run time."""
_LISTED = Path(__file__).with_name("licences.toml")
_TERM = re.compile(r"\s+(?:AND|OR)\s+|[()]")


@dataclass(frozen=True)
class Rules:
    """What `licences.toml` says."""

    allowed: frozenset[str]
    """SPDX identifiers that every distribution may have."""
    spelled: dict[str, str]
    """What metadata say instead of an SPDX expression, in lower case, and the expression."""
    stated: dict[str, str]
    """Licences that metadata do not name, by distribution."""
    runtime: dict[str, str]
    """Why a distribution with another licence may be required at run time, by distribution."""
    development: dict[str, str]
    """Likewise for what development alone requires."""


@dataclass(frozen=True)
class Distribution:
    """An installed distribution and its licence."""

    name: str
    version: str
    licence: str
    """An SPDX expression, or what its metadata say instead; "unknown" if they say nothing."""
    runtime: bool
    """Whether an installation of the wheel may require it."""


def rules() -> Rules:
    """Return what `licences.toml` says."""
    found = tomllib.loads(_LISTED.read_text())
    return Rules(frozenset(found["allowed"]), found["spelled"], found["stated"], found["runtime"], found["development"])


def installed(rules: Rules) -> list[Distribution]:
    """Return the locked distributions that are installed here, in order of their names."""
    runtime = _closure(PROJECT, EXTRAS)
    found = []
    # Nothing that the peers of the benchmark need is used otherwise.
    locks = [lock for lock in LOCKS if lock.file != "requirements.bench.lock"]
    for name in sorted(each.name for lock in locks for each in read(lock)):
        try:
            metadata = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        licence = rules.stated.get(name) or _licence(metadata, rules)
        found.append(Distribution(name, str(metadata["Version"]), licence, name in runtime))
    return found


def refused(found: Distribution, rules: Rules) -> str | None:
    """Return why a distribution may not be used; None if it may."""
    reasons = rules.runtime if found.runtime else rules.runtime | rules.development
    if found.name in reasons or is_allowed(found.licence, rules.allowed):
        return None
    kind = "runtime" if found.runtime else "development"
    return f"{found.name} {found.version} has the licence {found.licence!r}: no reason in [{kind}] of licences.toml"


def needless(found: list[Distribution], rules: Rules) -> list[str]:
    """Return the reasons of `licences.toml` that are not needed: a list that only grows allows too much.

    What only `make bench` or `make supply` installs is judged where it is installed.
    """
    locked = {each.name for lock in LOCKS for each in read(lock)}
    by_name = {each.name: each for each in found}
    listed = [*rules.runtime, *rules.development]
    return [name for name in listed if (_is_needless(by_name[name], rules) if name in by_name else name not in locked)]


def _is_needless(found: Distribution, rules: Rules) -> bool:
    return is_allowed(found.licence, rules.allowed) or (found.name in rules.runtime) != found.runtime


def is_allowed(licence: str, allowed: frozenset[str]) -> bool:
    """Return whether an expression is allowed: one alternative of `A OR B`; each licence of anything in parentheses."""
    terms = [term for term in _TERM.split(licence) if term]
    if "(" in licence:
        return all(term in allowed for term in terms)
    return any(all(term in allowed for term in each.split(" AND ")) for each in licence.split(" OR "))


def _licence(metadata: importlib.metadata.PackageMetadata, rules: Rules) -> str:
    said = metadata.get("License-Expression")
    if said is not None:
        return str(said)
    classifiers: list[str] = [
        each.rpartition(" :: ")[2] for each in metadata.get_all("Classifier") or [] if "License :: OSI" in each
    ]
    lines = [each for each in str(metadata.get("License") or "").strip().splitlines() if each != "UNKNOWN"]
    # The field is more exact than classifiers, but some put the whole text of the licence there.
    for each in [*lines[:1], *classifiers[:1]]:
        expression = rules.spelled.get(each.strip().lower(), each.strip())
        if is_allowed(expression, rules.allowed):
            return expression
    return next(iter([*lines[:1], *classifiers]), "unknown")


def _closure(name: str, extras: tuple[str, ...]) -> set[str]:
    """Return the names of all distributions that one requires here, itself included."""
    seen: set[tuple[str, str]] = set()
    waiting = [(name, extra) for extra in ("", *extras)]
    while waiting:
        each = waiting.pop()
        if each in seen:
            continue
        seen.add(each)
        waiting += _required(*each)
    return {name for name, _ in seen}


def _required(name: str, extra: str) -> Iterator[tuple[str, str]]:
    try:
        texts = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for each in map(Requirement, texts):
        if each.marker is None or each.marker.evaluate({"extra": extra}):
            yield from ((canonicalize_name(each.name), wanted) for wanted in ("", *each.extras))
