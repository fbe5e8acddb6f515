"""A run that Postgres does not let begin, or that nobody can read, fails alone; a begin with no answer counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.runs import LOCKED, STALE, Ending, NotBegun, Run
from orcheo_dispatch.shared.metrics.model import WorkerMetrics
from orcheo_dispatch.shared.settings.policies import LostRuns
from orcheo_dispatch.worker.begin import LOCK_SECONDS, REFUSED, UNAVAILABLE, Answer, Beginner
from tests.support.database.databases import Database
from tests.support.database.refusals import SLEEP, held, locked, meddle
from tests.support.database.runs import (
    WORKFLOW_ID,
    claim_all,
    everything,
    execute,
    insert_runs,
    ledger,
    one,
    read_run,
    settings_for,
    store_of,
)
from tests.support.processes.processes import Stack, until
from tests.support.servers.cutting_proxy import CuttingProxy

_BEGINS = "NEW.status = 'running'"
_EVERYTHING = "NEW.status IN ('running', 'failed')"
_EXPIRE = """
UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() - interval '1 s' WHERE run_id = ANY (%s)
"""
_SET = "UPDATE workflow_runs SET payload = jsonb_set(payload, '{%s}', %%s::jsonb) WHERE id = %%s"


@contextmanager
def _beginner(database: Database, *, lease: float = 30.0) -> Iterator[tuple[Beginner, UUID]]:
    worker_id = uuid4()
    with store_of(database) as (store, _):
        metrics = WorkerMetrics(settings_for(database), worker_id)
        yield Beginner(store, metrics, worker_id=worker_id, lease=lease), worker_id


def _answers(beginner: Beginner, claims: list[Claim]) -> dict[str, Answer]:
    """Return the answer to each claim; each has exactly one."""
    answers = [answer for begun in beginner.begin(claims) for answer in begun.answers]
    assert sorted(answer.claim for answer in answers) == sorted(claims)
    return {answer.claim.run_id: answer for answer in answers}


def _claimed(database: Database, count: int) -> dict[str, Claim]:
    insert_runs(database, count)
    with store_of(database) as (store, _):
        return {claim.run_id: claim for claim in claim_all(store, count)}


@pytest.mark.parametrize("state", ["P0001", "23514", "42501", "40001", "57014", "08006", "53100", "XX000"])
def test_run_whose_begin_is_refused_fails_and_the_others_begin(database: Database, state: str) -> None:
    claims = _claimed(database, 20)
    bad, *good = claims
    meddle(database, bad, condition=_BEGINS, state=state, deferred=state == "23514")
    with _beginner(database) as (beginner, _):
        answers = _answers(beginner, list(claims.values()))
    assert all(isinstance(answers[run_id], Run) for run_id in good)
    answer = answers[bad]
    assert isinstance(answer, NotBegun)
    assert (answer.reason, answer.slot_due_in is not None) == (REFUSED, True)
    run = read_run(database, bad)
    assert run["status"] == "failed"
    assert run["payload"]["error"].startswith("Postgres refused the begin of this run: ")
    assert f"(SQLSTATE {state})" in run["payload"]["error"]
    assert (ledger(database, bad)["outcome"], ledger(database, bad)["slot"]) == ("failed", "due")


def test_run_that_may_not_even_fail_stays_pending_and_the_others_begin(database: Database) -> None:
    claims = _claimed(database, 10)
    bad, *good = claims
    meddle(database, bad, condition=_EVERYTHING)
    with _beginner(database) as (beginner, _):
        answers = _answers(beginner, list(claims.values()))
    assert all(isinstance(answers[run_id], Run) for run_id in good)
    assert answers[bad] == NotBegun(claims[bad], REFUSED)
    assert read_run(database, bad)["status"] == "pending"


def test_begin_that_takes_its_time_delays_its_neighbours_by_seconds_only(database: Database) -> None:
    claims = _claimed(database, 10)
    slow, *good = claims
    meddle(database, slow, condition=_BEGINS, body=SLEEP)
    with _beginner(database, lease=60) as (beginner, _):
        begun_after: dict[str, float] = {}
        began = time.monotonic()
        for begun in beginner.begin(list(claims.values())):
            begun_after |= {answer.claim.run_id: time.monotonic() - began for answer in begun.answers}
    assert max(begun_after[run_id] for run_id in good) < 15
    assert read_run(database, slow)["payload"]["error"].endswith("QueryCanceled (SQLSTATE 57014).")


def test_run_that_was_created_at_no_time_begins_with_the_others(database: Database) -> None:
    claims = _claimed(database, 3)
    odd, odder, _ = claims
    execute(database, "UPDATE workflow_runs SET created_at = 'infinity' WHERE id = %s", odd)
    execute(database, "UPDATE workflow_runs SET created_at = '-infinity' WHERE id = %s", odder)
    with _beginner(database) as (beginner, _):
        answers = _answers(beginner, list(claims.values()))
    runs = {answer.claim.run_id: answer for answer in answers.values() if isinstance(answer, Run)}
    assert runs.keys() == claims.keys()
    assert (runs[odd].pending_for, runs[odder].pending_for) == (0, 0)


_DEEP = "[" * 3000 + "]" * 3000
_UNREADABLE = {
    "configuration is a list": ("runnable_config", "[1]", "The run's configuration must be a JSON object."),
    "configuration is text": ("runnable_config", '"x"', "The run's configuration must be a JSON object."),
    "configuration is a number": ("runnable_config", "7", "The run's configuration must be a JSON object."),
    "inputs are a list": ("input_payload", "[]", "The run's inputs must be a JSON object."),
    "inputs are true": ("input_payload", "true", "The run's inputs must be a JSON object."),
    "lists in lists": ("input_payload", f'{{"deep": {_DEEP}}}', "The run's inputs cannot be read"),
    "a number of 5000 digits": ("input_payload", f'{{"n": {"9" * 5000}}}', "The run's inputs cannot be read"),
}
_READABLE = {
    "null": ("runnable_config", "null"),
    "timeout of 10**400": ("runnable_config", f'{{"metadata": {{"run_timeout_seconds": {10**400}}}}}'),
    "timeout of 1e-400": ("runnable_config", '{"metadata": {"run_timeout_seconds": 1e-400}}'),
    "timeout of -10**400": ("runnable_config", f'{{"metadata": {{"run_timeout_seconds": -{10**400}}}}}'),
    "timeout is an object": ("runnable_config", '{"metadata": {"run_timeout_seconds": {"a": [1]}}}'),
    "metadata is a list": ("runnable_config", '{"metadata": [1, 2]}'),
    "metadata is text": ("runnable_config", '{"metadata": "run_timeout_seconds"}'),
}


def test_runs_that_nobody_can_read_fail_and_their_neighbours_succeed(database: Database, stack: Stack) -> None:
    runs = dict(zip([*_UNREADABLE, *_READABLE, "plain"], insert_runs(database, 15), strict=True))
    for name, (key, value, *_) in {**_UNREADABLE, **_READABLE}.items():
        execute(database, _SET % key, value, runs[name])
    with stack.running("worker") as worker, stack.running("dispatcher"):
        for name in ("plain", *_READABLE):
            until(lambda name=name: _status(database, runs[name]) == "succeeded", what=f"{name} succeeds", seconds=30)  # type: ignore[misc]
        for name in _UNREADABLE:
            until(lambda name=name: _status(database, runs[name]) == "failed", what=f"{name} fails", seconds=30)  # type: ignore[misc]
        assert "begin_failed" not in worker.log
        assert "9" * 20 not in worker.log
    for name, (_, _, error) in _UNREADABLE.items():
        payload = one(database, "SELECT payload ->> 'error' AS error FROM workflow_runs WHERE id = %s", runs[name])
        assert payload["error"].startswith(error), name
        assert ledger(database, runs[name])["attempts"] == 1


def _status(database: Database, run_id: str) -> str:
    return str(one(database, "SELECT status FROM workflow_runs WHERE id = %s", run_id)["status"])


@pytest.mark.parametrize("table", ["workflow_runs", "orcheo_dispatch.dispatch"])
def test_run_whose_row_is_held_is_told_so_after_the_others_have_begun(database: Database, table: str) -> None:
    claims = _claimed(database, 5)
    waiting, *good = claims
    with _beginner(database) as (beginner, _):
        with held(database, waiting, table):
            began = time.monotonic()
            first, *rest = [begun for begun in beginner.begin(list(claims.values())) if begun.answers]
            assert sorted(answer.claim.run_id for answer in first.answers) == sorted(good)
            assert [answer for begun in rest for answer in begun.answers] == [NotBegun(claims[waiting], LOCKED)]
            assert LOCK_SECONDS <= time.monotonic() - began < 20 * LOCK_SECONDS
        assert isinstance(_answers(beginner, [claims[waiting]])[waiting], Run)


def test_row_that_is_let_go_soon_begins_at_once(database: Database) -> None:
    claims = _claimed(database, 5)
    waiting = next(iter(claims))
    with _beginner(database) as (beginner, _), held(database, waiting) as somebody:
        timer = threading.Timer(LOCK_SECONDS / 4, somebody.rollback)
        timer.start()
        answers = _answers(beginner, list(claims.values()))
        timer.join()
    assert all(isinstance(answer, Run) for answer in answers.values())


def test_begin_on_a_locked_table_is_left_to_the_dispatcher(database: Database) -> None:
    claims = _claimed(database, 3)
    with _beginner(database) as (beginner, _), locked(database):
        began = time.monotonic()
        answers = _answers(beginner, list(claims.values()))
        assert time.monotonic() - began < 15
    assert set(answers.values()) == {NotBegun(claim, UNAVAILABLE) for claim in claims.values()}


@pytest.mark.parametrize("cuts", [1, 3])
def test_begin_that_was_committed_is_executed_although_its_answer_was_lost(database: Database, cuts: int) -> None:
    claims = _claimed(database, 10)
    with CuttingProxy(database.dsn) as proxy, _beginner(replace(database, dsn=proxy.dsn)) as (beginner, worker_id):
        proxy.cut(cuts)
        answers = _answers(beginner, list(claims.values()))
        assert len(proxy.cut_at) == cuts
        assert all(isinstance(answer, Run) for answer in answers.values()), answers
        again = _answers(beginner, list(claims.values()))
        assert {answer.reason for answer in again.values() if isinstance(answer, NotBegun)} == {STALE}
    for run_id in claims:
        row = ledger(database, run_id)
        assert (row["state"], row["worker_id"], row["attempts"]) == ("running", worker_id, 1)
    with store_of(database) as (store, _):
        assert store.settle(claims[next(iter(claims))], Ending.succeeded("{}")) is not None


def test_begin_is_looked_for_as_long_as_its_lease_lasts(database: Database) -> None:
    """The server is unavailable after the cut: what was begun is found when it is back, or given up after a lease."""
    claims = _claimed(database, 2)
    with CuttingProxy(database.dsn) as proxy, _beginner(replace(database, dsn=proxy.dsn), lease=20) as (beginner, _):
        proxy.cut()
        back = threading.Timer(2, proxy.refuse, [False])
        refusing = threading.Thread(target=lambda: (until(lambda: proxy.cut_at, what="cut"), proxy.refuse(True)))  # type: ignore[func-returns-value]
        refusing.start()
        back.start()
        answers = _answers(beginner, list(claims.values()))
        refusing.join()
        back.join()
        assert all(isinstance(answer, Run) for answer in answers.values()), answers
    later = _claimed(database, 1)
    with CuttingProxy(database.dsn) as proxy, _beginner(replace(database, dsn=proxy.dsn), lease=1) as (beginner, _):
        proxy.refuse(True)
        answers = _answers(beginner, list(later.values()))
    assert {type(answer) for answer in answers.values()} == {NotBegun}


def test_message_that_comes_twice_while_its_begin_is_looked_for_begins_once(database: Database) -> None:
    claims = _claimed(database, 3)
    found: list[Answer] = []
    with CuttingProxy(database.dsn) as proxy, _beginner(replace(database, dsn=proxy.dsn)) as (beginner, _):
        proxy.cut()

        def begin() -> None:
            found.extend(_answers(beginner, list(claims.values())).values())

        threads = [threading.Thread(target=begin) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(answer.run_id for answer in found if isinstance(answer, Run)) == sorted(claims)


def test_runs_of_a_message_whose_answer_was_lost_are_executed(database: Database, stack: Stack, redis_url: str) -> None:
    ids = insert_runs(database, 5)
    with CuttingProxy(database.dsn) as proxy:
        # The default lease of these tests, 3 s, may expire on a busy machine before the worker has asked again.
        with stack.running("worker", ORCHEO_POSTGRES_DSN=proxy.dsn, ORCHEO_WORKER_LEASE="60") as worker:
            proxy.cut(of=b"run_started")
            with stack.running("dispatcher"):
                worker.saw("begin_recovered")
                until(lambda: {_status(database, run_id) for run_id in ids} == {"succeeded"}, what="all succeed")
    assert {ledger(database, run_id)["attempts"] for run_id in ids} == {1}
    assert sorted(stack.noted("begun")) == sorted(ids)


@pytest.mark.parametrize("ruled", [False, True], ids=["no policy", "a policy"])
def test_begun_runs_are_found_as_they_began_by_their_worker_and_no_other(database: Database, ruled: bool) -> None:
    plain, endless, busy, foreign, waiting, ended, again = claims = _claimed(database, 7)
    execute(database, "UPDATE workflow_runs SET created_at = 'infinity' WHERE id = %s", endless)
    if ruled:
        execute(
            database,
            "INSERT INTO orcheo_dispatch.policy (workspace_id, workflow_id, timeout_seconds) VALUES ('', %s, 7)",
            WORKFLOW_ID,
        )
    mine, others = uuid4(), uuid4()
    with store_of(database) as (store, _):
        to_begin = [claims[run_id] for run_id in (plain, endless, busy, ended, again)]
        began = {answer.claim: answer for answer in store.begin_all(to_begin, worker_id=mine, lease=30)}
        store.begin(claims[foreign], worker_id=others, lease=30)
        store.settle(claims[ended], Ending.succeeded("{}"))
        execute(database, _EXPIRE, [again])
        store.reap(LostRuns.REQUEUE, max_attempts=3, lease=0, batch=1)
        (second,) = claim_all(store)
        began[second] = store.begin(second, worker_id=mine, lease=30)
        execute(database, _EXPIRE, [plain, endless, busy, foreign, again])
        with held(database, busy, table="orcheo_dispatch.dispatch"):
            found = store.begun_by(mine, [*claims.values(), second], lease=30)
    wanted = [began[claims[plain]], began[claims[endless]], NotBegun(claims[busy], LOCKED), began[second]]
    assert sorted(found, key=lambda answer: answer.claim) == sorted(wanted, key=lambda answer: answer.claim)
    assert {answer.rules.timeout for answer in found if isinstance(answer, Run)} == {7.0 if ruled else None}
    assert [answer.attempt for answer in found if answer.claim == second and isinstance(answer, Run)] == [2]
    query = "SELECT run_id FROM orcheo_dispatch.dispatch WHERE state = 'running' AND lease_expires_at > now()"
    assert {row["run_id"] for row in everything(database, query)} == {plain, endless, again}
    assert ledger(database, waiting)["state"] == "claimed"


@pytest.mark.parametrize("locked_row", [False, True], ids=["free", "locked"])
def test_begin_is_not_found_by_an_older_claim_of_its_run(database: Database, locked_row: bool) -> None:
    """Also if another run of the same request was claimed with the fence that the run has now."""
    again, other = claims = _claimed(database, 2)
    mine = uuid4()
    with store_of(database) as (store, _):
        store.begin_all([*claims.values()], worker_id=mine, lease=30)
        execute(database, "UPDATE orcheo_dispatch.dispatch SET fence = fence + 1")
        execute(database, _EXPIRE, [again, other])
        with held(database, again, table="orcheo_dispatch.dispatch") if locked_row else nullcontext():
            now = Claim(other, claims[other].fence + 1)
            found = store.begun_by(mine, [claims[again], now], lease=30)
            assert store.begun_by(mine, [claims[again]], lease=30) == []
    assert [answer.claim for answer in found] == [now]
    query = "SELECT run_id FROM orcheo_dispatch.dispatch WHERE lease_expires_at > now()"
    assert [row["run_id"] for row in everything(database, query)] == [other]
