"""Begin the runs of a message in one statement, or in parts if that fails, and each exactly once.

- A run whose row is locked is retried for `LOCK_SECONDS` while the others execute; then it is reported as `locked`. One
  that may have begun already is retried for as long as its lease may last.
- A run whose begin Postgres refuses, for whatever reason, fails with that reason.
- If the connection breaks, the begin may have been committed although its answer was lost. The worker then begins
  again, and finds by its own ID and the fence which runs it had already begun.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from orcheo_dispatch.shared.database.apart import write_apart
from orcheo_dispatch.shared.database.sqlstate import Failure, failure_of_state
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.runs import LOCKED, STALE, NotBegun, Run
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.metrics.model import WorkerMetrics

LOCK_SECONDS = 0.25
"""How long the locked rows of runs that have not begun are retried, from the start of the message (seconds)."""
STATEMENT_SECONDS = 3.0
REFUSED = "refused"
"""Postgres refuses the begin of the run. The run has failed, unless Postgres refused that write as well."""
UNAVAILABLE = "unavailable"
"""Postgres is unavailable: the claim has a lease, and the dispatcher reconciles it once the lease has expired."""
_ATTEMPTS = 3
_TABLE_LOCK_SECONDS = 1.0
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.005, 0.1
_OUTAGE_PAUSE_SECONDS = 0.5

Answer = Run | NotBegun


@dataclass(frozen=True, slots=True)
class Begun:
    """Answers to some claims; `since` is a `time.monotonic()` taken before their leases began."""

    since: float
    answers: list[Answer]


@dataclass(slots=True)
class _Message:
    """State of one message's claims while they are being begun."""

    began_at: float
    failures: dict[Claim, int] = field(default_factory=dict)
    in_doubt_since: dict[Claim, float] = field(default_factory=dict)
    again: list[Claim] = field(default_factory=list)
    unavailable: bool = False


class Beginner:
    """Begin runs for one worker."""

    def __init__(self, store: Store, metrics: WorkerMetrics, *, worker_id: UUID, lease: float) -> None:
        self._store = store
        self._metrics = metrics
        self._worker_id = worker_id
        self._lease = lease
        self._under_way: set[Claim] = set()
        self._lock = threading.Lock()

    def begin(self, claims: Sequence[Claim]) -> Iterator[Begun]:
        """Yield the answer to each claim as soon as it is known. Never raises because of a run or of Postgres."""
        with self._lock:
            # If the same message arrives twice, the first thread may still be recovering what it has begun.
            fresh = dict.fromkeys(claim for claim in claims if claim not in self._under_way)
            self._under_way.update(fresh)
        try:
            repeated: list[Answer] = [NotBegun(claim, STALE) for claim in claims if claim not in fresh]
            if repeated:
                yield Begun(time.monotonic(), repeated)
            yield from self._begin(list(fresh))
        finally:
            with self._lock:
                self._under_way.difference_update(fresh)

    def _begin(self, claims: Sequence[Claim]) -> Iterator[Begun]:
        message = _Message(time.monotonic())
        pause = _FIRST_PAUSE_SECONDS
        while claims:
            message.again, message.unavailable = [], False
            started = time.monotonic()
            for part in write_apart(claims, self._write):
                if part.result is not None:
                    yield from self._sort(message, started, part.result)
                elif part.error is not None:
                    if part.one:
                        answers = self._refused(message, part.items[0], part.error)
                    else:
                        answers = self._unanswered(message, started, part.items, part.error)
                    yield Begun(started, answers)
            claims = message.again
            if claims:
                time.sleep(_OUTAGE_PAUSE_SECONDS if message.unavailable else pause)
                pause = min(_MAX_PAUSE_SECONDS, 2 * pause)

    def _write(self, claims: Sequence[Claim]) -> list[Answer]:
        return self._store.begin_all(
            claims,
            worker_id=self._worker_id,
            lease=self._lease,
            lock_timeout=_TABLE_LOCK_SECONDS,
            timeout=STATEMENT_SECONDS,
        )

    def _sort(self, message: _Message, started: float, answers: list[Answer]) -> Iterator[Begun]:
        """Yield the final answers, including runs that an earlier statement began although its answer was lost."""
        final: list[Answer] = []
        stale: list[Claim] = []
        for answer in answers:
            if isinstance(answer, NotBegun) and answer.reason == LOCKED:
                final.extend(self._locked(message, answer))
            elif isinstance(answer, NotBegun) and answer.reason == STALE and answer.claim in message.in_doubt_since:
                stale.append(answer.claim)
            else:
                final.append(answer)
        yield Begun(started, final)
        if not stale:
            return
        try:
            found = self._store.begun_by(
                self._worker_id,
                stale,
                lease=self._lease,
                lock_timeout=_TABLE_LOCK_SECONDS,
                timeout=STATEMENT_SECONDS,
            )
        except DatabaseError as error:
            yield Begun(started, self._unanswered(message, started, stale, error))
            return
        ours = {answer.claim: answer for answer in found}
        for claim in stale:
            answer = ours.get(claim) or NotBegun(claim, STALE)
            if isinstance(answer, NotBegun) and answer.reason == LOCKED:
                yield Begun(started, [*self._locked(message, answer)])
                continue
            if isinstance(answer, Run):
                log.warning("begin_recovered", run_id=claim.run_id, fence=claim.fence)
            yield Begun(message.in_doubt_since[claim], [answer])

    def _locked(self, message: _Message, answer: NotBegun) -> list[NotBegun]:
        if time.monotonic() - message.began_at < LOCK_SECONDS or self._in_doubt(message, answer.claim):
            message.again.append(answer.claim)
            return []
        return [answer]

    def _in_doubt(self, message: _Message, claim: Claim) -> bool:
        """Return whether the run may have begun under a lease that has not expired."""
        since = message.in_doubt_since.get(claim)
        return since is not None and time.monotonic() - since < self._lease

    def _unanswered(
        self, message: _Message, started: float, claims: Sequence[Claim], error: DatabaseError
    ) -> list[Answer]:
        self._metrics.database_failed()
        message.unavailable = True
        if error.in_doubt:
            for claim in claims:
                message.in_doubt_since.setdefault(claim, started)
        final: list[Answer] = []
        for claim in claims:
            if self._in_doubt(message, claim):
                message.again.append(claim)
                continue
            log.warning("run_not_begun", run_id=claim.run_id, fence=claim.fence, reason=str(error))
            final.append(NotBegun(claim, UNAVAILABLE))
        return final

    def _refused(self, message: _Message, claim: Claim, error: DatabaseError) -> list[Answer]:
        """Retry or fail a run whose own statement failed, although the statement without runs succeeded."""
        failure = failure_of_state(error.sqlstate or "")
        if failure is Failure.LOCKED:
            return list(self._locked(message, NotBegun(claim, LOCKED)))
        message.failures[claim] = message.failures.get(claim, 0) + 1
        if failure is not Failure.REFUSED and message.failures[claim] < _ATTEMPTS:
            message.again.append(claim)
            return []
        log.error("begin_refused", run_id=claim.run_id, fence=claim.fence, error=error.what)
        slot_due_in = None
        try:
            text = f"Postgres refused the begin of this run: {error.what}."
            slot_due_in = self._store.refuse(
                {claim: text}, worker_id=self._worker_id, lock_timeout=_TABLE_LOCK_SECONDS
            ).get(claim)
        except DatabaseError as another:
            log.warning("run_not_begun", run_id=claim.run_id, fence=claim.fence, reason=another.what)
        return [NotBegun(claim, REFUSED, slot_due_in)]
