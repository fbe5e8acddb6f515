"""Wrap what the product calls to change the ledger, so that each call is recorded. In processes under test only.

The answers are those of Postgres, before `Store` puts them into words: what is checked is the ledger, not its callers.
A statement that was answered by an error has changed nothing; if the connection broke, its answer is lost.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from orcheo_dispatch.shared.database.sqlstate import answered
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger.changes import Changes
from orcheo_dispatch.shared.ledger.recovery import Recovering
from orcheo_dispatch.shared.ledger.statements.execute import BEGIN, BEGUN, HEARTBEAT, REFUSE, SETTLE
from orcheo_dispatch.shared.ledger.store import Store
from tests.histories.operations import Verb
from tests.histories.recorder import Call, Recorder

_COLUMNS = ("run_id", "fence", "state", "attempts", "slot", "outcome", "ended", "renewed", "rejected")
_ARRAYS: dict[int, tuple[Verb, tuple[str, ...]]] = {
    id(BEGIN): (Verb.BEGIN, ("run_ids", "fences")),
    id(BEGUN): (Verb.RECOVER, ("run_ids", "fences")),
    id(HEARTBEAT): (Verb.HEARTBEAT, ("run_ids", "fences")),
    id(REFUSE): (Verb.REFUSE, ("run_ids", "fences")),
    id(SETTLE): (Verb.SETTLE, ("run_ids", "fences", "outcomes", "statuses", "refunds", "keeps_slot")),
}
"""Statements by identity: the arrays among their parameters that say what is asked for each run."""
_STEPS = {"reap": Verb.REAP, "retry": Verb.RETRY, "adopt": Verb.ADOPT}
"""Changes that choose their runs themselves."""
_ARGUMENTS = ("worker_id", "lease", "policy", "max_attempts")


def wrap(recorder: Recorder) -> None:
    """Record all calls of this process from now on."""
    _wrap_statements(recorder)
    _wrap_choosing(recorder)
    _wrap_claims(recorder)
    _wrap_checkpoints(recorder)


def _wrap_statements(recorder: Recorder) -> None:
    original = Changes._rows

    @functools.wraps(original)
    def rows(self: Changes, statement: Any, *limits: Any, **parameters: Any) -> Sequence[Any]:
        if id(statement) not in _ARRAYS or not parameters.get("run_ids"):
            return original(self, statement, *limits, **parameters)
        verb, names = _ARRAYS[id(statement)]
        asked = list(zip(*(parameters[name] for name in names), strict=True))
        with recorder.call(verb, asked, **_arguments(parameters)) as call:
            return _answered(call, lambda: original(self, statement, *limits, **parameters))

    Changes._rows = rows  # type: ignore[method-assign,assignment]


def _wrap_choosing(recorder: Recorder) -> None:
    original = Changes._sifted

    @functools.wraps(original)
    def sifted(self: Changes, step: str, change: Any, /, **parameters: Any) -> Sequence[Any]:
        if step not in _STEPS:
            return original(self, step, change, **parameters)
        with recorder.call(_STEPS[step], [], **_arguments(parameters)) as call:
            return _answered(call, lambda: original(self, step, change, **parameters))

    Changes._sifted = sifted  # type: ignore[method-assign]


def _wrap_claims(recorder: Recorder) -> None:
    claim, given, slots_returned = Store.claim, Changes._sifted_claims, Recovering.slots_returned

    @functools.wraps(claim)
    def claim_recorded(self: Store, room: int, **parameters: Any) -> Any:
        with recorder.call(Verb.CLAIM, []) as call:
            claims = _without_effect(call, lambda: claim(self, room, **parameters))
            call.answer = [{"run_id": each.run_id, "fence": each.fence} for each in claims]
            return claims

    @functools.wraps(given)
    def given_recorded(self: Changes, step: str, change: Any, claims: Any, /, **parameters: Any) -> Sequence[Any]:
        claims = list(claims)
        if step != "release" or not claims:
            return given(self, step, change, claims, **parameters)
        with recorder.call(Verb.RELEASE, [(each.run_id, each.fence) for each in claims]) as call:
            return _answered(call, lambda: given(self, step, change, claims, **parameters))

    @functools.wraps(slots_returned)
    def slots_returned_recorded(self: Recovering, run_ids: Any) -> None:
        run_ids = list(run_ids)
        with recorder.call(Verb.RETURN_SLOT, [(run_id,) for run_id in run_ids]):
            slots_returned(self, run_ids)

    Store.claim = claim_recorded  # type: ignore[method-assign]
    Changes._sifted_claims = given_recorded  # type: ignore[method-assign]
    Recovering.slots_returned = slots_returned_recorded  # type: ignore[method-assign]


def _wrap_checkpoints(recorder: Recorder) -> None:
    from orcheo_dispatch.worker.books import group_commit

    original = group_commit._execute_within

    @functools.wraps(original)
    async def execute_within(pool: Any, rows: Any, worker_id: Any) -> None:
        if worker_id is None or not rows.claims:
            await original(pool, rows, worker_id)
            return
        asked = [(run_id, fence, run_id in rows.progressed) for run_id, fence in rows.claims.items()]
        with recorder.call(Verb.CHECKPOINT, asked, worker_id=worker_id) as call:
            try:
                await original(pool, rows, worker_id)
            except Exception as error:
                call.without_effect = answered(error)
                raise
            call.answer = [{"run_id": run_id} for run_id in rows.claims if run_id not in rows.stale]

    group_commit._execute_within = execute_within


def _answered(call: Call, execute: Callable[[], Sequence[Any]]) -> Sequence[Any]:
    rows = _without_effect(call, execute)
    call.answer = [{name: row._mapping[name] for name in _COLUMNS if name in row._mapping} for row in rows]
    return rows


def _without_effect[T](call: Call, execute: Callable[[], T]) -> T:
    try:
        return execute()
    except DatabaseError as error:
        call.without_effect = error.answered
        raise


def _arguments(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: parameters[name] for name in _ARGUMENTS if parameters.get(name) is not None}
