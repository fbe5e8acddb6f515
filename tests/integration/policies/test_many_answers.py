"""Answers of many runs: which runs a filter chooses, what is refused, and what the log of operations says."""

from __future__ import annotations

import getpass
import json
import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from orcheo_dispatch.shared.ledger.operators.operations import Author, Interface, list_operations
from orcheo_dispatch.shared.ledger.operators.repairs import BATCH, LOCKED, Repair, repair, repair_all
from orcheo_dispatch.shared.ledger.operators.selection import Action, Selection
from orcheo_dispatch.shared.ledger.runs import Ending
from tests.support.database.databases import Database
from tests.support.database.refusals import held, meddle
from tests.support.database.runs import (
    WORKFLOW_ID,
    WORKSPACE_ID,
    audit,
    claim_all,
    everything,
    execute,
    insert_runs,
    one,
    read_run,
    store_of,
)
from tests.support.processes.logbook import LOGBOOK
from tests.support.processes.processes import Stack

ADA = Author("ada", Interface.COMMAND)
MARKER = "s3cret-words-of-the-answer"
ANSWER = json.dumps({"text": MARKER})
_SEVERAL = "run waits for 2 answers: expected an object with the id of each interrupt as key"


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """Connections to the test's own database."""
    with store_of(database) as (_, engine):
        yield engine


@pytest.fixture
def stack(database: Database, redis_url: str, tmp_path: Path) -> Stack:
    LOGBOOK.plant(MARKER, "an answer")
    return Stack(database, redis_url, tmp_path / "side-effects")


def _waiting(database: Database, number: int, *, interrupts: int = 1) -> list[str]:
    """Return runs that wait for an answer, as a worker leaves them."""
    runs = insert_runs(database, number)
    ending = Ending.waiting("{}", checkpoint_id="c", interrupts=interrupts, keeps_slot=False)
    with store_of(database) as (store, _):
        claims = claim_all(store, number)
        store.mark_published(claims)
        for claim in claims:
            store.begin(claim, worker_id=uuid4(), lease=30)
            store.settle(claim, ending)
    return runs


def _answers(database: Database) -> dict[str, Any]:
    """Return what LangGraph will find as the answer of each run."""
    written = "SELECT thread_id, blob FROM checkpoint_writes WHERE channel = '__resume__'"
    return {row["thread_id"]: json.loads(bytes(row["blob"])) for row in everything(database, written)}


def _waits(database: Database) -> set[str]:
    return {row["run_id"] for row in everything(database, "SELECT run_id FROM orcheo_dispatch.waiting_runs")}


def _ran(stack: Stack, *arguments: str, expect: int | None = 0) -> str:
    with stack.command("answer", *arguments) as process:
        code = process.exit_code()
        process.finish()
        assert expect is None or code == expect, process.log
        assert "Traceback" not in process.log
        return process.log


def test_a_filter_answers_all_runs_that_wait_in_batches(database: Database, engine: Engine) -> None:
    runs = _waiting(database, 250)
    others = insert_runs(database, 3)
    seen: list[int] = []
    done = repair_all(
        engine, Selection(), Action.ANSWER, ADA, answer=ANSWER, on_progress=lambda part: seen.append(len(part))
    )
    assert {each.run_id for each in done} == set(runs)
    assert {(each.status_before, each.status_after, each.refused) for each in done} == {("running", "pending", None)}
    assert seen == [BATCH, BATCH, 50]
    assert _answers(database) == {key: {"text": MARKER} for key in runs}
    assert _waits(database) == set()
    assert audit(read_run(database, runs[0]))[-1] == "run_answered"
    entries = list_operations(engine, limit=10)[::-1]
    assert [(each.action, each.changed, each.refused) for each in entries] == [
        ("answer", BATCH, 0),
        ("answer", BATCH, 0),
        ("answer", 50, 0),
    ]
    assert {run_id for each in entries for run_id in each.run_ids} == set(runs)
    assert entries[0].details == {"status": ["running"], "waiting": True}
    assert MARKER not in str(entries)
    assert set(_pending(database)) == {*runs, *others}


def _pending(database: Database) -> list[str]:
    return [row["id"] for row in everything(database, "SELECT id FROM workflow_runs WHERE status = 'pending'")]


def test_a_run_that_waits_for_several_answers_is_refused_and_stops_no_other(database: Database, engine: Engine) -> None:
    single, several = _waiting(database, 2), _waiting(database, 1, interrupts=2)
    done = {each.run_id: each for each in repair_all(engine, Selection(), Action.ANSWER, ADA, answer='"yes"')}
    assert [done[run_id].refused for run_id in single] == [None, None]
    assert done[several[0]] == Repair(several[0], "running", "running", _SEVERAL)
    assert _answers(database) == dict.fromkeys(single, "yes")
    (entry,) = list_operations(engine, limit=10)
    assert (entry.changed, entry.refused, set(entry.run_ids)) == (2, 1, set(single))
    ids = json.dumps({"a": 1, "b": 2})
    assert [each.refused for each in repair(engine, several, Action.ANSWER, ADA, answer=ids)] == [None]
    assert _answers(database)[several[0]] == {"a": 1, "b": 2}


def test_a_run_that_no_longer_waits_is_refused(database: Database, engine: Engine) -> None:
    (first, second), (pending,) = _waiting(database, 2), insert_runs(database)
    execute(database, "SELECT orcheo_dispatch.answer(%s, '1')", first)
    unknown = str(uuid4())
    done = repair(engine, [first, second, pending, unknown], Action.ANSWER, ADA, answer="2")
    refused = "run does not wait for an answer"
    assert [each.refused for each in done] == [refused, None, refused, "there is no such run"]
    assert _answers(database) == {first: 1, second: 2}


@pytest.mark.parametrize("table", ["workflow_runs", "orcheo_dispatch.dispatch"])
def test_a_locked_run_is_reported_and_stops_no_other(database: Database, engine: Engine, table: str) -> None:
    runs = _waiting(database, 3)
    with held(database, runs[1], table):
        done = {each.run_id: each.refused for each in repair_all(engine, Selection(), Action.ANSWER, ADA, answer="1")}
    assert done == {runs[0]: None, runs[1]: LOCKED, runs[2]: None}
    assert _waits(database) == {runs[1]}


def test_a_run_that_postgres_refuses_stops_no_other(database: Database, engine: Engine) -> None:
    runs = _waiting(database, 20)
    meddle(database, runs[7], condition="NEW.status = 'pending'")
    done = {each.run_id: each for each in repair_all(engine, Selection(), Action.ANSWER, ADA, answer=ANSWER)}
    refused = done.pop(runs[7]).refused
    assert refused is not None
    assert refused.startswith("Postgres refuses it: ")
    assert MARKER not in refused
    assert not any(each.refused for each in done.values())
    assert _waits(database) == {runs[7]}


def test_two_operators_on_the_same_filter_answer_each_run_once(database: Database, engine: Engine) -> None:
    runs = _waiting(database, 300)
    with store_of(database) as (_, other):
        done: dict[str, Sequence[Repair]] = {}

        def act(name: str, connections: Engine) -> None:
            author = Author(name, Interface.PAGE)
            done[name] = repair_all(connections, Selection(), Action.ANSWER, author, answer=json.dumps(name))

        both = [threading.Thread(target=act, args=each) for each in (("ada", engine), ("bob", other))]
        for each in both:
            each.start()
        for each in both:
            each.join(60)
    changed = {each.run_id: name for name, parts in done.items() for each in parts if not each.refused}
    assert sum(not each.refused for parts in done.values() for each in parts) == len(runs)
    assert _answers(database) == changed


def test_filters_combine_and_a_limit_bounds_them(database: Database, engine: Engine) -> None:
    runs = _waiting(database, 4)
    execute(database, "UPDATE workflow_runs SET workspace_id = 'acme' WHERE id = ANY (%s)", runs[:3])
    execute(database, "UPDATE workflow_runs SET created_at = now() - interval '2 days' WHERE id = ANY (%s)", runs[1:])

    def found(limit: int | None = None, **given: Any) -> set[str]:
        chosen = Selection(**given)
        done = repair_all(engine, chosen, Action.ANSWER, ADA, answer="1", limit=limit, dry_run=True)
        return {each.run_id for each in done if each.status_after == "pending"}

    assert found() == set(runs)
    assert found(workspace="acme") == set(runs[:3])
    assert found(workspace="acme", older_than=86_400.0) == set(runs[1:3])
    assert found(workspace="acme", since=86_400.0) == set(runs[:1])
    assert found(workflow="another") == set()
    assert len(found(limit=2)) == 2
    assert _waits(database) == set(runs)
    assert list_operations(engine, limit=10) == []


def test_command_answers_one_run_and_records_the_operation_without_the_answer(database: Database, stack: Stack) -> None:
    (run_id,) = _waiting(database, 1)
    assert _ran(stack, run_id, "--json", ANSWER, "--dry-run") == f"{run_id}  would be running -> pending\n"
    assert _waits(database) == {run_id}
    assert _ran(stack, run_id, "--json", ANSWER) == f"{run_id}  running -> pending\n"
    row = one(database, "SELECT * FROM orcheo_dispatch.operation")
    assert (row["action"], row["interface"], row["run_ids"], row["changed"]) == ("answer", "command", [run_id], 1)
    assert row["by"] == (os.environ.get("SUDO_USER") or getpass.getuser())
    assert (row["workflow_id"], row["workspace_id"]) == (WORKFLOW_ID, WORKSPACE_ID)
    assert row["details"] == {}
    assert MARKER not in str(row)
    assert MARKER not in str(read_run(database, run_id))
    assert _answers(database) == {run_id: {"text": MARKER}}
    said = _ran(stack, run_id, "--json", ANSWER, expect=1)
    assert said == f"{run_id}  refused: run does not wait for an answer\n"


def test_command_answers_by_filter(database: Database, stack: Stack) -> None:
    runs, several = _waiting(database, 24), _waiting(database, 1, interrupts=2)
    of = ("--workflow", WORKFLOW_ID[:6], "--json", json.dumps(MARKER))
    said = _ran(stack, *of, "--dry-run", expect=1)
    assert "would be answered: 24 runs, refused: 1" in said
    assert _waits(database) == {*runs, *several}
    (line,) = _ran(stack, *of, expect=2).strip().splitlines()
    assert "answer with a filter asks before the change, and there is no terminal: add --yes" in line
    said = _ran(stack, *of, "--yes", "--limit", "3", "--output-json", "--workspace", WORKSPACE_ID, expect=None)
    printed = json.loads(said[said.index("[") :])
    assert len(printed) == 3
    said = _ran(stack, *of, "--yes", expect=1)
    assert f"{several[0]}  refused: {_SEVERAL}" in said
    assert _waits(database) == set(several)
    assert MARKER not in str(everything(database, "SELECT * FROM orcheo_dispatch.operation"))
    assert "answered: 0 runs" in _ran(stack, "--since", "1s", "--workspace", WORKSPACE_ID, "--json", "1", "--yes")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--json", "1"), "answer: expected ids of runs, or a filter such as --workflow"),
        (("RUN", "--json", "1", "--workflow", "F"), "answer: ids of runs cannot be combined with a filter"),
        (("RUN", "--json", "1", "--limit", "2"), "--limit cannot be used without a filter"),
        (("RUN", "--json", MARKER), "--json is not valid JSON: JSONDecodeError"),
        (("RUN", "--json", "NaN"), "--json is not valid JSON: ValueError"),
        (("RUN", "--json", '"\\ud800"'), "--json is not valid JSON: UnicodeEncodeError"),
        (("RUN", "--json", '"\\\\\\u0000"'), "--json is invalid: Postgres stores no \\u0000"),
    ],
)
def test_wrong_arguments_are_one_line_without_the_answer(stack: Stack, given: tuple[str, ...], says: str) -> None:
    (line,) = _ran(stack, *given, expect=2).strip().splitlines()
    assert says in line
    assert MARKER not in line


def test_a_backslash_before_u0000_is_text(database: Database, stack: Stack) -> None:
    (run_id,) = _waiting(database, 1)
    _ran(stack, run_id, "--json", '"\\\\u0000"')
    assert _answers(database) == {run_id: "\\u0000"}


@pytest.mark.parametrize(("key", "code"), [("y", 0), ("n", 1)])
def test_a_terminal_is_asked_with_the_number_of_runs(database: Database, stack: Stack, key: str, code: int) -> None:
    runs = _waiting(database, 3)
    leader, follower = pty.openpty()
    environment = {**os.environ, **stack.environment_of("answer")}
    arguments = ["answer", "--workspace", WORKSPACE_ID, "--json", "true"]
    with subprocess.Popen(
        [sys.executable, "-m", "orcheo_dispatch.ops.cli", *arguments],
        env=environment, stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(follower)
        shown = _read_until(leader, "answer 3 runs? [y/N]")
        os.write(leader, f"{key}\n".encode())
        shown += _read_until(leader, "answered: 3 runs" if code == 0 else "nothing was changed")
        assert process.wait(30) == code, shown
    os.close(leader)
    assert _waits(database) == (set() if code == 0 else set(runs))


def _read_until(leader: int, wanted: str) -> str:
    shown, deadline = "", time.monotonic() + 30
    while wanted not in shown:
        assert time.monotonic() < deadline, shown
        if select.select([leader], [], [], 1)[0]:
            shown += os.read(leader, 65_536).decode(errors="replace")
    return shown
