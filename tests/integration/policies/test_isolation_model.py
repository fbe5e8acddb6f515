"""The statements on isolated workflows do what models in Python do, for tables made at random."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from random import Random

import pytest
from sqlalchemy import Connection, text

from orcheo_dispatch.shared.ledger.statements.isolate import (
    CLEAR_ISOLATION,
    FIND_VERSION,
    FIND_WORKFLOW,
    ISOLATE,
    ISOLATED,
    PRUNE_ISOLATION,
    RECORD_HARM,
)
from tests.support.database.comparing import RolledBack
from tests.support.database.rows import add_workflow

_INSERT = text("""
INSERT INTO orcheo_dispatch.isolation (workflow_id, workflow_version_id, reason, by, since, until, last_seen_at, times)
SELECT x.workflow, x.version, x.reason, x.by, now() - make_interval(secs => x.since),
       now() + make_interval(secs => x.left_for), now() - make_interval(secs => x.seen), x.times
  FROM jsonb_to_recordset(CAST(:rows AS jsonb))
       AS x(workflow text, version text, reason text, by text, since float8, left_for float8, seen float8,
            times integer)
""")
_SELECT = text("""
SELECT i.workflow_id, i.workflow_version_id, i.reason, i.by, EXTRACT(epoch FROM now() - i.since)::integer,
       EXTRACT(epoch FROM i.until - now())::integer, EXTRACT(epoch FROM now() - i.last_seen_at)::integer, i.times
  FROM orcheo_dispatch.isolation AS i
""")
_VIEW = text("SELECT i.workflow_id, i.workflow_version_id FROM orcheo_dispatch.isolated_workflows AS i")
_VERSION = text("""
INSERT INTO workflow_versions (id, workflow_id, version, payload, created_at, updated_at)
VALUES (:id, :workflow, :version, '{}', now(), now())
""")
_DAY = 86_400
_MOST = 1_000_000_000

type Key = tuple[str, str]
type Table = dict[Key, Isolation]


@dataclass(frozen=True)
class Isolation:
    """An isolation; times are seconds ago, but for `left_for`, which is negative where it has expired."""

    workflow: str
    version: str
    reason: str
    by: str
    since: int
    left_for: int | None
    seen: int | None
    times: int

    @property
    def in_force(self) -> bool:
        return self.left_for is None or self.left_for > 0


def _at_random(random: Random) -> Table:
    return {
        (workflow, version): Isolation(
            *(workflow, version, random.choice(("crash", "memory")), random.choice(("worker", "ada"))),
            since=random.choice((5, 500)),
            left_for=random.choice((None, 50, 2 * _DAY, -50, -20 * _DAY, -40 * _DAY)),
            seen=random.choice((None, 5, 500)),
            times=random.choice((0, 3, _MOST)),
        )
        for workflow in ("w1", "w2")
        for version in ("", "v1", "v2")
        if random.random() < 0.7
    }


def _read(connection: Connection) -> Table:
    return {(row[0], row[1]): Isolation(*row) for row in connection.execute(_SELECT)}


def _harm(table: Table, key: Key) -> Table:
    known = table.get(key)
    if known is None:
        return {**table, key: Isolation(*key, "exit", "worker", 0, _DAY, 0, 2)}
    after = replace(known, seen=0, times=min(known.times + 2, _MOST), since=_since(known))
    if known.left_for is not None and known.left_for <= _DAY:
        after = replace(after, reason="exit", by="worker", left_for=_DAY)
    return {**table, key: after}


def _isolate(seconds: int | None) -> Callable[[Table, Key], Table]:
    def isolated(table: Table, key: Key) -> Table:
        known = table.get(key)
        if known is None:
            return {**table, key: Isolation(*key, "by hand", "eve", 0, seconds, None, 0)}
        return {**table, key: replace(known, reason="by hand", by="eve", left_for=seconds, since=_since(known))}

    return isolated


def _since(known: Isolation) -> int:
    return 0 if known.left_for is not None and known.left_for <= 0 else known.since


@pytest.mark.parametrize("seed", range(60))
def test_workflow_is_isolated_as_the_model_says(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    table, key = _at_random(random), (random.choice(("w1", "w2")), random.choice(("", "v1", "v2")))
    whose = {"workflow_id": key[0], "version_id": key[1]}
    for statement, given, model in (
        (RECORD_HARM, {"reason": "exit", "times": 2}, _harm),
        (ISOLATE, {"reason": "by hand", "by": "eve", "seconds": None}, _isolate(None)),
        (ISOLATE, {"reason": "by hand", "by": "eve", "seconds": 77}, _isolate(77)),
    ):
        with rolled_back() as connection:
            connection.execute(_INSERT, {"rows": json.dumps([asdict(each) for each in table.values()])})
            connection.execute(statement, {**whose, **given})
            assert _read(connection) == model(table, key)


@pytest.mark.parametrize("seed", range(30))
def test_isolations_are_listed_cleared_and_pruned_as_the_model_says(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    table = _at_random(random)
    workflow, version = random.choice(("w1", "w2")), random.choice((None, "", "v1"))

    def cleared(each: Isolation) -> bool:
        return each.in_force and each.workflow == workflow and version in (None, each.version)

    with rolled_back() as connection:
        connection.execute(_INSERT, {"rows": json.dumps([asdict(each) for each in table.values()])})
        listed = connection.execute(ISOLATED, {"limit": 100}).all()
        expected = sorted(
            (each for each in table.values() if each.in_force),
            key=lambda each: (each.left_for is not None, -(each.left_for or 0), each.workflow, each.version),
        )
        assert [(row.workflow_id, row.workflow_version_id or "") for row in listed] == [
            (each.workflow, each.version) for each in expected
        ]
        shown = {(row.workflow_id, row.workflow_version_id or "") for row in connection.execute(_VIEW)}
        assert shown == {(each.workflow, each.version) for each in expected}
        rows = connection.execute(CLEAR_ISOLATION, {"workflow_id": workflow, "version_id": version})
        assert sorted((row.workflow_id, row.workflow_version_id or "") for row in rows) == sorted(
            key for key, each in table.items() if cleared(each)
        )
        left = {key: each for key, each in table.items() if not cleared(each)}
        assert _read(connection) == left
        connection.execute(PRUNE_ISOLATION)
        assert _read(connection) == {
            key: each for key, each in left.items() if each.left_for is None or each.left_for > -30 * _DAY
        }


@pytest.mark.parametrize("seed", range(20))
def test_workflow_and_version_are_found_by_the_beginning_of_their_ids(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    workflows = ("w1", "w12", "w2", "x", "_")
    versions = ("v", "v1", "v12", "v2", "3", "31")
    stored = {*random.sample(workflows, 3)}
    # The ID of a version is unique; its number is so within a workflow.
    owners = {(version, random.choice([*stored])): number for number, version in enumerate(versions, 1)}
    owners = {key: number for key, number in owners.items() if random.random() < 0.7}
    isolated = {
        (workflow, version) for workflow in workflows for version in ("", *versions, "gone") if random.random() < 0.3
    }
    table = [Isolation(*key, "crash", "worker", 5, None, None, 0) for key in isolated]
    with rolled_back() as connection:
        connection.execute(_INSERT, {"rows": json.dumps([asdict(each) for each in table])})
        for workflow in stored:
            add_workflow(connection, workflow)
        for (version, workflow), number in owners.items():
            connection.execute(_VERSION, {"id": version, "workflow": workflow, "version": number})
        for given in (*workflows, "", "w", "%", "none"):
            known = stored | {workflow for workflow, _ in isolated}
            expected = {each: each == given for each in known if each.startswith(given)}
            assert [tuple(row) for row in connection.execute(FIND_WORKFLOW, {"given": given})] == _first(expected)
        for workflow in workflows:
            numbers = {version: number for (version, of), number in owners.items() if of == workflow}
            known = {*numbers} | {version for of, version in isolated if of == workflow and version}
            for given in (*versions, "", "4", "none"):
                exact = {each: each == given or str(numbers.get(each)) == given for each in known}
                expected = {each: is_exact for each, is_exact in exact.items() if is_exact or each.startswith(given)}
                rows = connection.execute(FIND_VERSION, {"given": given, "workflow_id": workflow})
                assert [tuple(row) for row in rows] == _first(expected)


def _first(found: dict[str, bool]) -> list[tuple[str, bool]]:
    """Return the first four, exact ones before others."""
    return sorted(found.items(), key=lambda each: (not each[1], each[0]))[:4]
