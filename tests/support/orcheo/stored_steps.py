"""When each step of a run was stored, noted by triggers, and which executions began although it already was.

Times are those of the machine's clock, which Postgres and the steps share.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

SCHEMA = """
CREATE SCHEMA stored_steps;
CREATE TABLE stored_steps.noted (
    run_id text NOT NULL, namespace text NOT NULL, step int, task_id text,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- A checkpoint says that all tasks of its step have ended; writes say it of one task.
CREATE FUNCTION stored_steps.note_checkpoint() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO stored_steps.noted (run_id, namespace, step)
    VALUES (NEW.thread_id, NEW.checkpoint_ns, (NEW.metadata ->> 'step')::int);
    RETURN NULL;
END $$;
CREATE TRIGGER note_checkpoint AFTER INSERT ON checkpoints
    FOR EACH ROW EXECUTE FUNCTION stored_steps.note_checkpoint();

CREATE FUNCTION stored_steps.note_writes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO stored_steps.noted (run_id, namespace, task_id)
    VALUES (NEW.thread_id, NEW.checkpoint_ns, NEW.task_id);
    RETURN NULL;
END $$;
-- What a task writes when it does not end.
CREATE TRIGGER note_writes AFTER INSERT ON checkpoint_writes
    FOR EACH ROW WHEN (NEW.channel NOT IN ('__error__', '__interrupt__', '__resume__', '__scheduled__'))
    EXECUTE FUNCTION stored_steps.note_writes();
"""
_STORED = """
SELECT run_id, namespace, step, task_id, EXTRACT(epoch FROM min(at))::float8 AS at
  FROM stored_steps.noted GROUP BY run_id, namespace, step, task_id
"""


@dataclass(frozen=True, slots=True)
class Execution:
    """One execution of a step, noted when it began."""

    run_id: str
    label: str
    namespace: str
    """Of the graph that the step is a part of; empty for the run's own graph."""
    step: int
    task_id: str
    at: float
    pid: int


@dataclass(frozen=True, slots=True)
class Stored:
    """When a step, or one task of it, was stored."""

    run_id: str
    namespace: str
    step: int | None
    task_id: str | None
    at: float


def install(connection: psycopg.Connection[Any]) -> None:
    """Note from now on when steps are stored. The tables of checkpoints must be there."""
    connection.execute(SCHEMA)


def read_executions(file: Path) -> list[Execution]:
    """Return the executions that steps have appended to a file, in order."""
    return [Execution(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def read_stored(connection: psycopg.Connection[Any]) -> list[Stored]:
    """Return what was noted."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return [Stored(**row) for row in cursor.execute(_STORED).fetchall()]


def finished_steps_repeated(executions: Iterable[Execution], stored: Iterable[Stored]) -> list[Execution]:
    """Return the executions that began after their step was stored: there must be none."""
    stored_at: dict[tuple[str, str, int | str | None], float] = {}
    for each in stored:
        stored_at[each.run_id, each.namespace, each.task_id if each.step is None else each.step] = each.at
    return [
        each
        for each in executions
        if any(
            each.at > stored_at.get((each.run_id, each.namespace, place), float("inf"))
            for place in (each.step, each.task_id)
        )
    ]


def steps_in_flight_repeated(executions: Iterable[Execution]) -> Counter[tuple[str, str]]:
    """Return by run and label how often each step was executed beyond once."""
    counted = Counter((each.run_id, each.label) for each in executions)
    return Counter({place: count - 1 for place, count in counted.items() if count > 1})
