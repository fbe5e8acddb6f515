"""Compare what a statement returns and leaves with what a model says, in a transaction that is rolled back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, TextClause

from orcheo_dispatch.shared.database.connections import open_engine
from orcheo_dispatch.shared.settings.model import Settings
from tests.support.database.databases import Database
from tests.support.database.run_states import State, read, write

type Row = tuple[object, ...] | None
"""What a statement returns of one run."""
type RolledBack = Callable[[], AbstractContextManager[Connection]]
"""Opens a transaction that is rolled back in the end."""


@contextmanager
def transactions(database: Database) -> Iterator[RolledBack]:
    """Yield what opens transactions on the database; all use one connection."""
    nowhere = "redis://127.0.0.1:1/0"
    settings = Settings.load(postgres_dsn=database.dsn, redis_url=nowhere, slots_redis_url=nowhere)
    with open_engine(settings, role="test") as engine, engine.connect() as connection:

        @contextmanager
        def rolled_back() -> Iterator[Connection]:
            with connection.begin() as transaction:
                yield connection
                transaction.rollback()

        yield rolled_back


def compare(
    connection: Connection,
    states: Iterable[State],
    statement: TextClause,
    parameters: dict[str, Any],
    model: Callable[[State], tuple[Row, State | None]],
) -> None:
    """Write these runs, execute the statement, and make sure that it returns and leaves what the model does.

    The model returns the row of one run, or None, and the run afterwards, None if nothing of it is left.
    """
    states = [*states]
    verdicts = {state.id: model(state) for state in states}
    write(connection, states)
    rows = [tuple(row) for row in connection.execute(statement, parameters)]
    returned = {row[0]: row for row in rows}
    assert len(returned) == len(rows), parameters
    assert returned == {run_id: row for run_id, (row, _) in verdicts.items() if row is not None}, parameters
    found = read(connection)
    for run_id, (_, after) in verdicts.items():
        assert found.pop(run_id, None) == after, parameters
    assert found == {}, parameters


@dataclass(frozen=True)
class Which:
    """The runs that a statement may take; with `choose` it changes nothing."""

    skipped: Collection[str] = ()
    chosen: Collection[str] | None = None
    choose: bool = False

    def takes(self, state: State) -> bool:
        """Whether it may take this run."""
        return state.id not in self.skipped and (self.chosen is None or state.id in self.chosen)

    @property
    def parameters(self) -> dict[str, Any]:
        """Return it as a statement takes it."""
        chosen = None if self.chosen is None else [*self.chosen]
        return {"skipped": [*self.skipped], "chosen": chosen, "choose": self.choose, "batch": 1000}
