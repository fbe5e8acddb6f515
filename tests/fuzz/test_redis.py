"""What Redis brings. Anyone who can write to it can put anything there, under any of our names and in any queue."""

from __future__ import annotations

import base64
import json
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from orcheo_dispatch.dispatcher.wakeups.hints import CRON_HINT, RUN_HINT, HintListener
from orcheo_dispatch.dispatcher.wakeups.push import read_push
from orcheo_dispatch.dispatcher.wakeups.ticks import beat_of
from orcheo_dispatch.shared.broker.app import EXECUTE_RUN, HINT_QUEUE, claims_of, connect, task_name
from orcheo_dispatch.shared.broker.held import held_claims
from orcheo_dispatch.shared.broker.installation import Installation
from orcheo_dispatch.shared.broker.readers import Readers
from orcheo_dispatch.shared.broker.slots import COUNTER, RunSlots
from orcheo_dispatch.shared.cron.record import CronRecord
from orcheo_dispatch.shared.errors import BrokerError
from orcheo_dispatch.shared.ledger.model import Claim, ProcessKind, Push
from orcheo_dispatch.shared.ledger.processes import Process
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.text.storable import is_storable
from orcheo_dispatch.worker.messages.message import read_claims
from tests.fuzz.examples import broken, changed, check_line, damaged, fuzzed, raw, values
from tests.support.database.databases import Database
from tests.support.database.runs import store_of

_OURS = Installation("fuzz")
_CLAIM = Claim("6f0c7dd4-3d0c-4a0e-8a37-0c7a5d0a1f00", 3)
_PAIRS: list[Any] = [_CLAIM.run_id, _CLAIM.fence]
_MESSAGE: dict[str, Any] = {
    "body": base64.b64encode(json.dumps([_PAIRS, {}, {"callbacks": None}]).encode()).decode(),
    "content-type": "application/json",
    "headers": {"task": EXECUTE_RUN, "id": "1", "claims": _PAIRS, "installation": "fuzz", "returns": 0},
    "properties": {"body_encoding": "base64", "delivery_tag": "1"},
}
_PUSH = _MESSAGE | {
    "body": base64.b64encode(json.dumps([["run-1"], {}, {}]).encode()).decode(),
    "headers": {"task": RUN_HINT, "workspace_id": "w"},
}
_TICK = {"host": "beat-1", "pid": 7, "id": str(uuid4())}
_ENTRY = {"age": 0.0, "host": "h", "by_itself": True, "outcome": "succeeded", "reason": ""}

type Kind = tuple[str, bytes]
kinds: st.SearchStrategy[Kind] = st.tuples(
    st.sampled_from(["string", "list", "hash", "set", "none"]), raw(_MESSAGE) | raw(_ENTRY)
)
"""The type of a key, and what is in it."""


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Every line of the log, as text."""
    lines: list[str] = []
    sink = log.add(lambda message: lines.append(str(message.record["message"])), level="TRACE")
    yield lines
    log.remove(sink)


@given(message=raw(_MESSAGE))
@fuzzed
def test_message_is_one_of_ours_or_none(message: bytes) -> None:
    name = task_name(message)
    assert name is None or isinstance(name, str)
    for claim in claims_of(message):
        assert is_storable(claim.run_id)
        assert type(claim.fence) is int


@given(args=changed(_PAIRS) | values, kwargs=st.just({}) | st.dictionaries(st.text(max_size=3), values, max_size=2))
@fuzzed
def test_arguments_of_a_task_are_claims_that_the_ledger_can_look_up_or_one_line(args: Any, kwargs: Any) -> None:
    lines: list[dict[str, Any]] = []
    sink = log.add(lambda message: lines.append(dict(message.record)), level="TRACE")
    try:
        claims = read_claims(args if isinstance(args, list) else [args], kwargs)
    finally:
        log.remove(sink)
    assert all(is_storable(claim.run_id) and 0 < claim.fence < 2**63 for claim in claims)
    assert [each["message"] for each in lines] == ([] if claims else ["malformed_message"])


@given(message=raw(_PUSH))
@fuzzed
def test_push_names_a_run_that_postgres_can_look_up_or_none(message: bytes) -> None:
    push = read_push(message)
    if push is not None:
        assert is_storable(push.run_id)
        assert push.workspace_id is None or is_storable(push.workspace_id)


@given(header=changed(_TICK) | values)
@fuzzed
def test_tick_names_a_beat_that_can_be_stored_and_shown_or_none(header: Any) -> None:
    beat = beat_of(header)
    if beat is not None:
        assert is_storable(beat.host)
        assert beat.host.isprintable()


@given(entry=raw(_ENTRY), kind=st.sampled_from(["string", "list"]))
@fuzzed
def test_record_of_cron_is_shown_or_counts_as_none(client: redis.Redis, entry: bytes, kind: str) -> None:
    _put(client, f"{_OURS.cron_record}.success", (kind, entry))
    try:
        seen = CronRecord(client, _OURS.cron_record).success()
    except BrokerError as error:
        check_line(str(error))
        return
    if seen is not None:
        shown = seen.host + seen.outcome + seen.reason
        assert is_storable(shown)
        assert shown.isprintable()
        assert math.isfinite(seen.age)


@given(
    messages=st.lists(raw(_MESSAGE), max_size=6),
    unacked=st.lists(raw([_MESSAGE, "orcheo.runs", "orcheo.runs"]), max_size=4),
    at=st.integers(0, 6),
)
@fuzzed
def test_claim_is_found_among_whatever_the_queues_hold(
    client: redis.Redis, messages: list[bytes], unacked: list[bytes], at: int
) -> None:
    client.flushdb()
    ours = json.dumps(_MESSAGE).encode()
    client.rpush(_OURS.runs, *messages[:at], ours, *messages[at:])
    other = Claim("another", 1)
    delivered = json.dumps([_with(other), "orcheo.runs", "orcheo.runs"])
    client.hset(_OURS.unacked, mapping={"tag": delivered, **{str(n): each for n, each in enumerate(unacked)}})
    held = held_claims(client, _OURS, [_CLAIM, other])
    assert _CLAIM in held.waiting
    assert other in held.waiting | held.delivered


@given(kind=kinds)
@fuzzed
def test_queue_that_is_something_else_is_one_error(client: redis.Redis, kind: Kind) -> None:
    client.flushdb()
    _put(client, _OURS.runs, kind)
    _put(client, _OURS.unacked, kind)
    try:
        held = held_claims(client, _OURS, [_CLAIM])
        assert not (held.waiting | held.delivered) - {_CLAIM}
    except BrokerError as error:
        check_line(str(error))


def test_note_of_a_worker_is_a_note_of_this_release_or_of_none(database: Database, client: redis.Redis) -> None:
    with store_of(database) as (store, engine):
        worker = Process(ProcessKind.WORKER, id=uuid4(), host="h", pid=1)
        worker.seen(engine)
        _notes(store, client, str(worker.id))


def _notes(store: Store, client: redis.Redis, worker_id: str) -> None:
    readers = Readers(client, _OURS, store, lease=300)

    @given(kind=st.tuples(st.just("string"), broken | st.sampled_from([b"0", b"1", b"2", b"", b" 1", b"1.0"])) | kinds)
    @fuzzed
    def survey(kind: Kind) -> None:
        client.flushdb()
        _put(client, _OURS.reader(worker_id), kind)
        found = readers.survey()
        assert found.new | found.old <= {worker_id}
        assert (found.new == {worker_id}) == (kind == ("string", b"1"))

    survey()


@given(kind=kinds | st.tuples(st.just("string"), st.sampled_from([b"5", b"0", b"-1", b"x", b"1.5", b"9" * 30])))
@fuzzed
def test_slots_are_returned_beside_a_counter_that_is_something_else(client: redis.Redis, kind: Kind) -> None:
    client.flushdb()
    _put(client, COUNTER + "bad", kind)
    client.set(COUNTER + "good", 2)
    slots = RunSlots(client)
    for _ in range(2):
        try:
            slots.give_back_all([("r1", "good"), ("r2", "bad"), ("r3", "good")])
        except BrokerError as error:
            check_line(str(error))
    assert slots.in_use("good") == 0
    try:
        assert slots.in_use("bad") >= 0 or kind[0] == "string"
    except BrokerError as error:
        check_line(str(error))


class _Heard:
    def __init__(self) -> None:
        self.runs: list[str] = []
        self.last = threading.Event()

    def __call__(self, pushes: Sequence[Push]) -> dict[Push, bool]:
        self.runs += [each.run_id for each in pushes]
        if "last" in self.runs:
            self.last.set()
        return dict.fromkeys(pushes, True)


@given(messages=st.lists(raw(_PUSH) | raw(_MESSAGE) | damaged(CRON_HINT.encode()), max_size=8))
@fuzzed
def test_every_push_among_whatever_waits_is_heard(
    client: redis.Redis, redis_url: str, said: list[str], messages: list[bytes]
) -> None:
    client.flushdb()
    said.clear()
    heard = _Heard()
    pushes = [json.dumps(_PUSH | {"body": json.dumps([[run], {}, {}]), "properties": {}}) for run in ("first", "last")]
    client.lpush(HINT_QUEUE, pushes[0], *messages, pushes[1])
    listener = HintListener(connect(redis_url), on_pushes=heard, on_cron=lambda: None, interval=0.02)
    listener.start()
    try:
        assert heard.last.wait(20), said
    finally:
        listener.stop()
    assert "first" in heard.runs
    assert all(is_storable(run) for run in heard.runs)
    assert "hints_failed" not in said


def _with(claim: Claim) -> dict[str, Any]:
    return _MESSAGE | {"headers": _MESSAGE["headers"] | {"claims": [claim.run_id, claim.fence]}}


def _put(client: redis.Redis, key: str, kind: Kind) -> None:
    client.delete(key)
    match kind:
        case "string", content:
            client.set(key, content)
        case "list", content:
            client.rpush(key, content)
        case "hash", content:
            client.hset(key, content, content)
        case "set", content:
            client.sadd(key, content)
