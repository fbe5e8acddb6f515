"""What an operator can do on the status page: the body that each action takes, and what it changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta, Struct
from sqlalchemy import Engine, text

from orcheo_dispatch.shared.database.connections import transaction
from orcheo_dispatch.shared.ledger.isolations import Isolations
from orcheo_dispatch.shared.ledger.operators.operations import Author
from orcheo_dispatch.shared.ledger.operators.policies import ALL, Policies, Scope
from orcheo_dispatch.shared.ledger.operators.repairs import repair
from orcheo_dispatch.shared.ledger.operators.selection import Action

MOST_RUNS = 200
"""Maximum number of runs that one action changes."""
_LONGEST_SECONDS = 31_536_000
_IN_SECONDS = text("SELECT now() + make_interval(secs => CAST(:seconds AS float8))")

type _Id = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
type _Why = Annotated[str, Meta(min_length=1, max_length=500, pattern=r"\S")]
type _Seconds = Annotated[float, Meta(gt=0, le=_LONGEST_SECONDS)]
type _Runs = Annotated[int, Meta(ge=1, le=1_000_000)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many rows were changed, and what was not and why."""

    changed: int
    refused: dict[str, str] = field(default_factory=dict)
    """Reasons by the ID of the run."""


class Act(Struct, forbid_unknown_fields=True, kw_only=True):
    """A body. Each has the reason that the operator gives."""

    why: _Why

    def apply(self, engine: Engine, author: Author) -> Outcome:
        """Do it, record who did it, and return what was done. Raises `DatabaseError`."""
        raise NotImplementedError


class _OfRuns(Act):
    runs: Annotated[list[_Id], Meta(min_length=1, max_length=MOST_RUNS)]

    def repaired(self, engine: Engine, action: Action, author: Author, *, from_start: bool = False) -> Outcome:
        done = repair(engine, self.runs, action, author, from_start=from_start)
        refused = {each.run_id: each.refused for each in done if each.refused}
        return Outcome(len(done) - len(refused), refused)


class _Requeue(_OfRuns):
    from_start: bool = False

    def apply(self, engine: Engine, author: Author) -> Outcome:
        return self.repaired(engine, Action.REQUEUE, author, from_start=self.from_start)


class _Cancel(_OfRuns):
    def apply(self, engine: Engine, author: Author) -> Outcome:
        return self.repaired(engine, Action.CANCEL, author)


class _Fail(_OfRuns):
    def apply(self, engine: Engine, author: Author) -> Outcome:
        return self.repaired(engine, Action.FAIL, author)


class _OfScope(Act):
    """About a workflow, a workspace or, with neither, all runs."""

    workspace_id: _Id | None = None
    workflow_id: _Id | None = None

    def __post_init__(self) -> None:
        if self.workspace_id and self.workflow_id:
            raise ValueError("a workspace or a workflow, not both")

    def set(self, engine: Engine, author: Author, **changes: Any) -> Outcome:
        return Outcome(Policies(engine).put(Scope(self.workspace_id or "", self.workflow_id or ""), changes, author))


class _Pause(_OfScope):
    seconds: _Seconds | None = None

    def apply(self, engine: Engine, author: Author) -> Outcome:
        # By the clock of the database, which decides when the pause ends.
        with transaction(engine, read_only=True) as connection:
            until = connection.scalar(_IN_SECONDS, {"seconds": self.seconds})
        return self.set(engine, author, paused=True, paused_until=until)


class _Unpause(_OfScope):
    def apply(self, engine: Engine, author: Author) -> Outcome:
        return self.set(engine, author, paused=None, paused_until=None)


class _Limit(_OfScope):
    max_running: _Runs | None = None
    rate_runs: _Runs | None = None
    rate_seconds: Annotated[int, Meta(ge=1, le=604_800)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.rate_runs is None) != (self.rate_seconds is None):
            raise ValueError("a rate takes a number of runs and a period")

    def apply(self, engine: Engine, author: Author) -> Outcome:
        rate = {"rate_runs": self.rate_runs, "rate_seconds": self.rate_seconds}
        return self.set(engine, author, max_running=self.max_running, **rate)


class _Priority(_OfScope):
    priority: Annotated[int, Meta(ge=-5, le=5)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.workspace_id or self.workflow_id):
            raise ValueError("a priority is that of a workspace or a workflow")

    def apply(self, engine: Engine, author: Author) -> Outcome:
        return self.set(engine, author, priority=self.priority)


class _Maintenance(Act):
    on: bool

    def apply(self, engine: Engine, author: Author) -> Outcome:
        return Outcome(Policies(engine).put(ALL, {"maintenance": True if self.on else None}, author))


class _Isolate(Act):
    workflow_id: _Id
    seconds: _Seconds | None = None

    def apply(self, engine: Engine, author: Author) -> Outcome:
        Isolations(engine).isolate(self.workflow_id, None, author, seconds=self.seconds)
        return Outcome(1)


class _ClearIsolation(Act):
    workflow_id: _Id

    def apply(self, engine: Engine, author: Author) -> Outcome:
        return Outcome(len(Isolations(engine).clear(self.workflow_id, None, author)))


@dataclass(frozen=True, slots=True)
class Kind:
    """An action: the body that it takes, and what the log of operations calls it."""

    body: type[Act]
    logged: str


KINDS = {
    "requeue": Kind(_Requeue, "requeue"),
    "cancel": Kind(_Cancel, "cancel"),
    "fail": Kind(_Fail, "fail"),
    "pause": Kind(_Pause, "policy set"),
    "unpause": Kind(_Unpause, "policy set"),
    "limit": Kind(_Limit, "policy set"),
    "priority": Kind(_Priority, "policy set"),
    "maintenance": Kind(_Maintenance, "policy set"),
    "isolate": Kind(_Isolate, "isolate"),
    "clear-isolation": Kind(_ClearIsolation, "isolate clear"),
}
