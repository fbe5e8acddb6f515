"""The SQL function `answer` does to a run what a model in Python does, and nothing to any other."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tests.support.database.comparing import RolledBack
from tests.support.database.run_states import US, State, read, write
from tests.support.database.runs_at_random import at_random

_ANSWER = text("SELECT orcheo_dispatch.answer(:run, CAST(:answer AS jsonb), :by)")
_WRITES = text("SELECT thread_id, checkpoint_id, channel, convert_from(blob, 'UTF8') AS answer FROM checkpoint_writes")


def _takes(state: State, answer: Any) -> bool:
    return state.waits and (state.question == 1 or isinstance(answer, dict))


@pytest.mark.parametrize("seed", range(60))
def test_answer_changes_a_run_that_waits_and_no_other(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    states = at_random(random, random.choice((2, 6, 12)), ("settled", "settled", "running"))
    states = [replace(each, status="running") if each.status and random.random() < 0.7 else each for each in states]
    chosen = random.choice(states)
    answer = random.choice(("yes", {"a": 1}))
    takes = _takes(chosen, answer)
    with rolled_back() as connection:
        write(connection, states)
        refused = pytest.raises(DBAPIError, match=f"run {chosen.id} (does not wait|waits) for")
        with nullcontext() if takes else refused, connection.begin_nested():
            connection.execute(_ANSWER, {"run": chosen.id, "answer": json.dumps(answer), "by": US})
        expected = {each.id: each for each in states}
        if takes:
            assert chosen.entry is not None
            after = chosen.entered(refunded=chosen.entry.attempts, reason="answered")
            after = after.moved("pending", "run_answered", {"reason": "Answered."}, started=None, question=None)
            expected[chosen.id] = after
        assert read(connection) == expected
        written = [(row.thread_id, row.checkpoint_id, row.channel, row.answer) for row in connection.execute(_WRITES)]
    assert written == ([(chosen.id, "c", "__resume__", json.dumps(answer))] if takes else [])
