"""What really happened, noted by triggers in the same transactions: each move of the ledger and of each run's status.

The ledger keeps only the last claim of a run. The trial asks what became of every one, and when. `at` is the clock of
the machine, which also stamps the faults and the side effects.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import psycopg
from psycopg.rows import class_row

SCHEMA = """
CREATE SCHEMA faults;
CREATE TABLE faults.moves (
    n bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), run_id text NOT NULL,
    fence bigint NOT NULL, sign text NOT NULL, state text NOT NULL, outcome text, worker_id text
);
CREATE TABLE faults.statuses (
    n bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), run_id text NOT NULL,
    before text, after text NOT NULL
);

CREATE FUNCTION faults.note_move() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE sign text := 'other';
BEGIN
    IF TG_OP = 'INSERT' OR NEW.fence <> OLD.fence THEN sign := NEW.state;
    ELSIF NEW.state <> OLD.state THEN sign := NEW.state;
    ELSIF NEW.state = 'running' AND NEW.heartbeat_at IS DISTINCT FROM OLD.heartbeat_at THEN sign := 'beat';
    ELSIF NEW.state = 'published' AND NEW.lease_expires_at IS DISTINCT FROM OLD.lease_expires_at
        AND NEW.reason = 'waiting in Redis' THEN sign := 'waiting';
    END IF;
    INSERT INTO faults.moves (run_id, fence, sign, state, outcome, worker_id)
    VALUES (NEW.run_id, NEW.fence, sign, NEW.state, NEW.outcome, NEW.worker_id);
    RETURN NULL;
END $$;
CREATE TRIGGER note_move AFTER INSERT OR UPDATE ON orcheo_dispatch.dispatch
    FOR EACH ROW EXECUTE FUNCTION faults.note_move();

CREATE FUNCTION faults.note_status() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO faults.statuses (run_id, before, after)
    VALUES (NEW.id, CASE WHEN TG_OP = 'UPDATE' THEN OLD.status END, NEW.status);
    RETURN NULL;
END $$;
CREATE TRIGGER note_status AFTER INSERT OR UPDATE OF status ON workflow_runs
    FOR EACH ROW EXECUTE FUNCTION faults.note_status();
"""

_MOVES = """
SELECT EXTRACT(epoch FROM at)::float8 AS at, run_id, fence, sign, state, outcome, worker_id
  FROM faults.moves ORDER BY n
"""
_STATUSES = "SELECT EXTRACT(epoch FROM at)::float8 AS at, run_id, before, after FROM faults.statuses ORDER BY n"
TERMINAL = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Move:
    """A change of a row of the ledger. `sign` says which: a state that it came to, `beat`, `waiting` or `other`."""

    at: float
    run_id: str
    fence: int
    sign: str
    state: str
    outcome: str | None
    worker_id: str | None


@dataclass(frozen=True, slots=True)
class Status:
    """A change of a run's status; `before` is None at its creation."""

    at: float
    run_id: str
    before: str | None
    after: str


@dataclass(frozen=True)
class History:
    """All of it, in order."""

    moves: list[Move]
    statuses: list[Status]

    @cached_property
    def moves_of(self) -> dict[str, list[Move]]:
        """The moves by run."""
        found: dict[str, list[Move]] = defaultdict(list)
        for move in self.moves:
            found[move.run_id].append(move)
        return found

    @cached_property
    def statuses_of(self) -> dict[str, list[Status]]:
        """The statuses by run."""
        found: dict[str, list[Status]] = defaultdict(list)
        for status in self.statuses:
            found[status.run_id].append(status)
        return found

    def begins(self, run_id: str) -> list[Move]:
        """Return the moves by which a run began."""
        return [move for move in self.moves_of.get(run_id, []) if move.sign == "running"]

    def settled_at(self, run_id: str, fence: int) -> float | None:
        """Return when the claim was settled, or None while it is not."""
        settled = (m.at for m in self.moves_of.get(run_id, []) if m.fence == fence and m.sign == "settled")
        return next(settled, None)

    def ended_at(self, run_id: str) -> float | None:
        """Return when the run came to the status that it has, or None where that is no end."""
        last = self.statuses_of[run_id][-1] if self.statuses_of.get(run_id) else None
        return last.at if last is not None and last.after in TERMINAL else None


def install(connection: psycopg.Connection[Any]) -> None:
    """Note everything from now on."""
    connection.execute(SCHEMA)


def read(connection: psycopg.Connection[Any]) -> History:
    """Return all that was noted."""
    with connection.cursor(row_factory=class_row(Move)) as cursor:
        moves = cursor.execute(_MOVES).fetchall()
    with connection.cursor(row_factory=class_row(Status)) as statuses:
        return History(moves, statuses.execute(_STATUSES).fetchall())
