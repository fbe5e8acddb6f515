"""A dispatcher's place in the rotation over workspaces and workflows with pending runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat, zip_longest
from typing import Any

from sqlalchemy import Connection, TextClause

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.statements.claim import CLAIM, LIMITED_CLAIMS_LOCK
from orcheo_dispatch.shared.ledger.statements.claim_oldest import CLAIM_OLDEST_FIRST
from orcheo_dispatch.shared.ledger.statements.policy import SPEND

KEYS = 64
"""Maximum number of pairs of workspace and workflow that one statement reads."""
_STATEMENTS = 8
"""Maximum number of statements per claim; the next poll follows at once and continues from there."""
_BLANK_CLAIMS = 8
"""Number of consecutive claims that find nothing, among more pairs than they can look at, before polling slows down."""
_REMEMBERED = 5000
"""Maximum number of workspaces for which the last workflow that was claimed from is remembered."""

Ask = Callable[..., Sequence[Any]]
"""Executes a statement with parameters and returns its rows."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Maximum numbers of runs that may be claimed, published or running at a time; None means no limit."""

    per_workflow: int | None = None
    per_workspace: int | None = None
    """Does not apply to runs without a workspace."""
    by_policy: bool = False
    """Whether rows of `orcheo_dispatch.policy` set limits or rates; these hold in addition."""
    rated: bool = True
    """Whether rows set rates: with `by_policy`, claims are then counted against them."""

    def __bool__(self) -> bool:
        """Return whether any limit is set."""
        return self.by_policy or (self.per_workflow, self.per_workspace) != (None, None)

    @property
    def parameters(self) -> dict[str, int | None]:
        """The parameters of the statements that claim."""
        return {"per_workflow": self.per_workflow, "per_workspace": self.per_workspace}


NO_LIMITS = Limits()


@dataclass(slots=True)
class Turns:
    """A dispatcher's position in the rotation, kept from claim to claim.

    Each claim starts after the workspaces and workflows that had a turn in the previous claim, so that each of
    thousands gets one. Every dispatcher has its own position; the database alone decides which runs it gets.
    """

    more: bool = False
    """Whether the last claim, as far as it could see, left runs that can be claimed at once."""
    held: list[str] = field(default_factory=list)
    """Runs that the last claim skipped because another session has locked their ledger rows."""
    _workspace: str = ""
    _workflows: dict[str, str] = field(default_factory=dict)
    """For each workspace in which some workflows are still to have a turn: the last workflow that had one."""
    _blank: int = 0

    def claim(
        self, connection: Connection, room: int, terms: Mapping[str, Any], limits: Limits, *, in_turn: bool
    ) -> list[Claim]:
        """Claim up to `room` runs in this transaction, in turn or oldest first.

        `terms` are parameters that all statements have in common.
        """

        def ask(statement: TextClause, **parameters: Any) -> Sequence[Any]:
            given = {**terms, **limits.parameters, "choose": False, **parameters}
            rows = connection.execute(statement, given).all()
            if limits.by_policy and limits.rated:
                # Before the next statement, which must see what counts against the rates.
                spend(connection, _keys(rows))
            return rows

        if limits:
            connection.execute(LIMITED_CLAIMS_LOCK)
        self.held = []
        return self._take(room, ask) if in_turn else self._take_oldest(room, ask)

    def choose(
        self, connection: Connection, room: int, terms: Mapping[str, Any], limits: Limits, *, in_turn: bool
    ) -> list[str]:
        """Lock the runs that a claim would take now, and return their ids. The position does not change."""
        if limits:
            connection.execute(LIMITED_CLAIMS_LOCK)
        statement = CLAIM if in_turn else CLAIM_OLDEST_FIRST
        window = self._window() if in_turn else {}
        parameters = {**terms, **limits.parameters, "room": room, "choose": True, **window}
        # There may be more, and those that are refused are skipped from now on.
        self.more = True
        return [run_id for row in connection.execute(statement, parameters) for run_id in row.chosen_ids]

    def _take(self, room: int, ask: Ask) -> list[Claim]:
        claims: list[Claim] = []
        given: list[tuple[str, str]] = []
        seen_all = raced = full = False
        for _ in range(_STATEMENTS):
            left = room - len(claims)
            rows = ask(CLAIM, room=left, **self._window(given))
            if not given:
                seen_all = _saw_all(rows)
            found = sum(row.found for row in rows)
            taken = _interleaved(rows)
            claims += taken
            held = [run_id for row in rows for run_id in row.held_ids]
            self.held += held
            raced = raced or len(taken) < found - len(held)
            full = found >= left
            if not given:
                self._advance(rows, stopped=found >= left)
            given = [(row.workspace, row.workflow) for row in rows if row.has_more]
            if full or (seen_all and not given):
                break
        self._blank = 0 if claims or seen_all else self._blank + 1
        unfinished = bool(given) or not seen_all
        self.more = raced or full or (unfinished and self._blank < _BLANK_CLAIMS)
        return claims

    def _take_oldest(self, room: int, ask: Ask) -> list[Claim]:
        """Claim up to `room` runs, oldest first across all workspaces; does not need the index on turns."""
        (row,) = ask(CLAIM_OLDEST_FIRST, room=room)
        claims = _claims(row)
        self.held = list(row.held_ids)
        self.more = row.found >= room or len(claims) < row.within_limits - len(self.held)
        return claims

    def _window(self, given: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
        """Return the parameters that say which keys to look at: those in `given` or, if empty, the next in order."""
        return {
            "workspaces": [workspace for workspace, _ in given] or None,
            "workflows": [workflow for _, workflow in given] or None,
            "keys": KEYS,
            "after_workspace": self._workspace,
            "workspaces_begun": list(self._workflows),
            "after_workflows": list(self._workflows.values()),
        }

    def _advance(self, rows: Sequence[Any], *, stopped: bool) -> None:
        """Advance the position past the keys that had a turn.

        These are all keys that were looked at or, if `stopped` because the room was full, those up to the last one with
        a run.
        """
        reached = max((n for n, row in enumerate(rows) if row.found), default=0) if stopped else len(rows) - 1
        for workspace, of_workspace in _grouped(rows).items():
            had = [row.workflow for n, row in of_workspace if n <= reached]
            if not had:
                continue
            self._workspace = workspace
            self._workflows.pop(workspace, None)
            if len(had) < len(of_workspace) or len(of_workspace) >= _workflows_looked_at(rows):
                self._workflows[workspace] = had[-1]
        while len(self._workflows) > _REMEMBERED:
            del self._workflows[next(iter(self._workflows))]


def spend(connection: Connection, claims: Mapping[tuple[str, str], int]) -> None:
    """Count claims, given per workspace and workflow, against the rates of policies."""
    if claims:
        keys = {"workspaces": [key[0] for key in claims], "workflows": [key[1] for key in claims]}
        connection.execute(SPEND, {**keys, "claims": list(claims.values())})


def _keys(rows: Sequence[Any]) -> Counter[tuple[str, str]]:
    """Return how many runs of each workspace and workflow were claimed; a row has one of both, or one for each run."""
    found: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if hasattr(row, "workspaces"):
            found.update(zip(row.workspaces, row.workflows, strict=True))
        elif row.run_ids:
            found[row.workspace, row.workflow] += len(row.run_ids)
    return found


def _grouped(rows: Sequence[Any]) -> dict[str, list[tuple[int, Any]]]:
    grouped: dict[str, list[tuple[int, Any]]] = {}
    for n, row in enumerate(rows):
        grouped.setdefault(row.workspace, []).append((n, row))
    return grouped


def _workflows_looked_at(rows: Sequence[Any]) -> int:
    """Return how many workflows of each workspace a window may hold, computed as in the statement."""
    return max(1, KEYS // max(1, len({row.workspace for row in rows})))


def _saw_all(rows: Sequence[Any]) -> bool:
    grouped = _grouped(rows)
    most = _workflows_looked_at(rows)
    return len(grouped) < KEYS and all(len(of_workspace) < most for of_workspace in grouped.values())


def _interleaved(rows: Sequence[Any]) -> list[Claim]:
    """Return the first claim of each row, then the second of each, since claims that are published first wait least."""
    by_key: Iterable[Iterable[Claim | None]] = zip_longest(*map(_claims, rows))
    return [claim for claim in chain.from_iterable(by_key) if claim is not None]


def _claims(row: Any) -> list[Claim]:
    """Return the claims of a row, which has one queue for all of them, or one for each."""
    queues = row.queues if hasattr(row, "queues") else repeat(row.queue, len(row.run_ids))
    return [Claim(*each) for each in zip(row.run_ids, row.fences, queues, strict=True)]
