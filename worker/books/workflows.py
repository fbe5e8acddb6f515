"""Read what runs execute, for many runs in one statement; read a version only if a runner does not have it."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec
from psycopg.rows import DictRow

from orcheo_dispatch.shared.ledger.runs import Run
from orcheo_dispatch.shared.settings.policies import LostRuns
from orcheo_dispatch.worker.books.heads import Head, read_heads
from orcheo_dispatch.worker.books.postgres import Pool, fetch_all, may_pass

MAX_VERSIONS = 256
"""Maximum number of versions that a runner keeps; an upload is half a megabyte at most, usually a few kilobytes."""

_MAX_READ_AT_ONCE = 200

# Orcheo's own get_version is not used: its first call in a process reads every pending, running and failed run of
# the table into memory. A row is returned even if the joins find nothing. Times are read as JSON texts, which are in
# ISO form regardless of the session's formats; the version's time is never parsed here.
_SELECT_WORKFLOWS = """
SELECT run.place, w.id AS workflow_id, w.is_archived, w.workspace_id, v.id AS version_id,
       to_json(v.updated_at) #>> '{}' AS updated_at,
       CASE WHEN v.updated_at IS DISTINCT FROM run.known_at THEN v.payload END::text AS payload,
       EXISTS (SELECT FROM checkpoints AS c WHERE c.thread_id = run.id) AS has_checkpoints,
       EXISTS (SELECT FROM execution_history AS h WHERE h.execution_id = run.id) AS has_history,
       (SELECT COALESCE(s.payload ->> 'status', (SELECT k.name FROM jsonb_object_keys(s.payload) AS k(name) LIMIT 1))
          FROM execution_history_steps AS s WHERE s.execution_id = run.id
         ORDER BY s.step_index DESC LIMIT 1) AS traced,
       (SELECT t.start_over_from FROM orcheo_dispatch.retry AS t WHERE t.run_id = run.id) AS start_over_from,
       -- The record before that of this begin: why the run is executed again.
       (SELECT CASE WHEN a.record ->> 'action' IN ('run_requeued', 'run_retried', 'run_answered')
                    THEN COALESCE(a.record #>> '{metadata,reason}', '') END
          FROM workflow_runs AS r CROSS JOIN LATERAL (SELECT r.payload #> '{audit_log,-2}' AS record) AS a
         WHERE r.id = run.id) AS again_because,
       to_json(clock_timestamp()) #>> '{}' AS now
  FROM unnest(%(run_ids)s::text[], %(workflow_ids)s::text[], %(version_ids)s::text[], %(known_at)s::timestamptz[])
       WITH ORDINALITY AS run (id, workflow_id, version_id, known_at, place)
  LEFT JOIN workflows w ON w.id = run.workflow_id
  LEFT JOIN workflow_versions v ON v.id = run.version_id
"""


class Provided(msgspec.Struct, frozen=True, array_like=True):
    """What a run executes, and what an earlier attempt has left; sent in `Start.provided`, as MessagePack."""

    rejected: str | None
    """Why the run may not be executed; the other fields are then meaningless."""
    version_missing: bool
    """Whether the run's workflow version no longer exists."""
    version_id: str
    updated_at: str | None
    """When the version was last changed, in ISO form."""
    payload: bytes | None
    """The version, as JSON text; None if the runner has it."""
    has_checkpoints: bool
    has_history: bool
    now: str
    """Postgres' time when this was read, in ISO form."""
    read_at: float
    """`time.monotonic()` when this was read; all processes of a host share this clock."""
    resume: bool = False
    """Whether each step is stored as it ends, and the run continues after the steps that an earlier attempt stored."""
    heads: list[Head] = msgspec.field(default_factory=list)
    """The checkpoints that it continues from, one per namespace."""
    traced: str | None = None
    """The last step of its trace: the status in it, or else its first key; None if there is none."""
    waits: bool = False
    """Whether the run waits for an answer if it stops at an interrupt; otherwise it ends."""
    again_because: str | None = None
    """Why the run is executed again, as its audit log says; None if this is the first time."""

    def encode(self) -> bytes:
        """Return the bytes that are sent to the runner."""
        return _encoder.encode(self)

    @staticmethod
    def decode(encoded: bytes) -> Provided:
        """Return the object that `encode` was called on. Raises `msgspec.MsgspecError` for other bytes."""
        return _decoder.decode(encoded)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Provided)


class KnownVersions:
    """The versions that one runner has been given in its lifetime, and so those that it keeps.

    A runner that has dropped one of them reads it itself.
    """

    def __init__(self) -> None:
        self._known_at: OrderedDict[str, str] = OrderedDict()

    def known_at(self, version_id: str) -> str | None:
        """Return the `updated_at` of the version that the runner has, for `provide`."""
        return self._known_at.get(version_id)

    def give(self, provided: Provided) -> None:
        """Record that the runner is given this; call it in the order in which runs are sent."""
        if provided.updated_at is None:
            return
        self._known_at[provided.version_id] = provided.updated_at
        self._known_at.move_to_end(provided.version_id)
        if len(self._known_at) > MAX_VERSIONS:
            self._known_at.popitem(last=False)


class Workflows:
    """Read what runs execute, for all runners of a worker.

    Whether a workflow is archived is read for each run. Requests made during a statement are answered together by the
    next one, so an answer is never older than its request.
    """

    def __init__(self, pool: Pool, *, rule: Callable[[Run], LostRuns], waits: bool = False) -> None:
        """`rule` returns what happens to a run if its worker is lost."""
        self._pool = pool
        self._rule = rule
        self._waits = waits
        self._asked: list[_Question] = []
        self._reading: asyncio.Task[None] | None = None

    async def provide(self, run: Run, known_at: str | None) -> Provided:
        """Return what `run` executes; without the version itself if that was last changed at `known_at`.

        Transient errors are retried for up to half a minute; see `may_pass`. Raises Postgres' error; unless that is
        transient, it concerns this run only.
        """
        loop = asyncio.get_running_loop()
        question = _Question(run, known_at, loop.create_future())
        self._asked.append(question)
        if self._reading is None:
            self._reading = loop.create_task(self._read())
        return await question.answer

    async def _read(self) -> None:
        asked: list[_Question] = []
        try:
            while self._asked:
                asked, self._asked = self._asked[:_MAX_READ_AT_ONCE], self._asked[_MAX_READ_AT_ONCE:]
                await self._answer(asked)
        finally:
            self._reading = None
            # Only if this task was cancelled: no caller may wait forever.
            for each in asked:
                each.answer.cancel()

    async def _answer(self, asked: Sequence[_Question]) -> None:
        try:
            answers = await self._ask(asked)
        except Exception as error:  # noqa: BLE001 - each run fails with it, as if it had asked alone.
            if len(asked) > 1 and not may_pass(error):
                for each in asked:
                    await self._answer([each])
                return
            for each in asked:
                if not each.answer.done():
                    each.answer.set_exception(error)
            return
        for question, answer in zip(asked, answers, strict=True):
            if not question.answer.done():
                question.answer.set_result(answer)

    async def _ask(self, asked: Sequence[_Question]) -> list[Provided]:
        parameters = {
            "run_ids": [each.run.run_id for each in asked],
            "workflow_ids": [each.run.workflow_id for each in asked],
            "version_ids": [each.run.workflow_version_id for each in asked],
            "known_at": [each.known_at for each in asked],
        }
        rows = await fetch_all(self._pool, _SELECT_WORKFLOWS, parameters)
        read_at = time.monotonic()
        by_place = {row["place"]: row for row in rows}
        heads = await read_heads(
            self._pool,
            [each.run.run_id for place, each in enumerate(asked, 1) if by_place[place]["has_checkpoints"]],
        )
        return [
            _provided(
                each.run,
                by_place[place],
                read_at,
                rule=self._rule(each.run),
                waits=self._waits,
                heads=heads.get(each.run.run_id, []),
            )
            for place, each in enumerate(asked, 1)
        ]


class _Question(msgspec.Struct, frozen=True):
    run: Run
    known_at: str | None
    answer: asyncio.Future[Provided]


def _provided(run: Run, row: DictRow, read_at: float, *, rule: LostRuns, waits: bool, heads: list[Head]) -> Provided:
    resume = rule is LostRuns.RESUME or _continues(rule, heads)
    rejected = _rejected(run, row)
    payload = row["payload"] if rejected is None else None
    start_over = any(not each.namespace and each.checkpoint_id == row["start_over_from"] for each in heads)
    return Provided(
        rejected=rejected,
        version_missing=row["version_id"] is None,
        version_id=run.workflow_version_id,
        updated_at=row["updated_at"] if rejected is None else None,
        payload=payload.encode() if payload is not None else None,
        has_checkpoints=row["has_checkpoints"],
        has_history=row["has_history"],
        now=row["now"],
        read_at=read_at,
        resume=resume,
        heads=heads if resume and not start_over else [],
        traced=row["traced"],
        waits=waits,
        again_because=row["again_because"],
    )


def _continues(rule: LostRuns, heads: list[Head]) -> bool:
    """Return whether a run that was stored under `resume` continues, although the rule is another one now.

    Finished steps are not repeated, except under `requeue`, by which a run starts again, unless it was just answered.
    """
    starts_again = rule is LostRuns.REQUEUE and not any(each.is_answered for each in heads)
    return not starts_again and any(each.is_of_a_step for each in heads)


def _rejected(run: Run, row: DictRow) -> str | None:
    """Return why the run may not be executed, None if it may: the workflow may have changed since the run began."""
    if row["workflow_id"] is None or _is_foreign(row["workspace_id"], run.workspace_id):
        return "Workflow is archived or unavailable."
    return "Workflow is archived." if row["is_archived"] else None


def _is_foreign(owner: str | None, workspace_id: str) -> bool:
    """Return whether the workflow belongs to another workspace; one without an owner belongs to all, as in Orcheo."""
    return owner is not None and owner != workspace_id
