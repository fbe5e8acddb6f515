"""Turn the recorded calls of all processes into the operations on each run."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.histories.operations import NEVER, Answer, Held, Lost, Operation, Verb

type Row = Mapping[str, Any]


@dataclass(slots=True)
class Recorded:
    """One call: of one or many runs, or of those that the statement chooses."""

    verb: Verb
    by: str
    invoked: float
    asked: list[list[Any]]
    arguments: Mapping[str, Any]
    answered: float = NEVER
    rows: Any = None
    without_effect: bool = False

    @property
    def is_lost(self) -> bool:
        """Whether nobody knows if it took effect."""
        return self.answered == NEVER


def read_calls(file: Path) -> list[Recorded]:
    """Return the calls that had any effect, or may have had. The last line of a killed process may be incomplete."""
    calls: dict[tuple[str, int], Recorded] = {}
    for text in file.read_text().splitlines() if file.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        key = line["by"], line["n"]
        if "verb" in line:
            arguments = {name: line[name] for name in line.keys() - {"by", "n", "at", "verb", "asked"}}
            calls[key] = Recorded(Verb(line["verb"]), line["by"], line["at"], line["asked"], arguments)
        elif key in calls:
            calls[key].answered = line["at"]
            calls[key].rows = line.get("answer")
            calls[key].without_effect = line.get("without_effect", False)
    return [call for call in calls.values() if not call.without_effect]


def operations_of(calls: Iterable[Recorded], ends: Mapping[str, Operation]) -> dict[str, list[Operation]]:
    """Return the operations on each run; `ends` has the last one of each, see `final`."""
    found: dict[str, list[Operation]] = defaultdict(list)
    lost: list[Recorded] = []
    for call in calls:
        if call.verb in _CHOOSING and call.is_lost:
            lost.append(call)
            continue
        for run_id, operation in _CHOOSING.get(call.verb, _of_asked)(call):
            found[run_id].append(operation)
    for run_id, end in ends.items():
        found[run_id].append(end)
    return {run_id: [*found[run_id], *_lost_ones(found[run_id], lost)] for run_id in ends}


def final(row: Row, ledger: Row | None, at: float) -> Operation:
    """Return the operation that reads what is left of a run at the end."""
    fence = 0
    # Admitted because of its push, and never claimed: as if there were no row.
    if ledger is None or (ledger["fence"] == 1 and ledger["outcome"] == "released"):
        left = None
    else:
        state = "queued" if ledger["state"] in ("claimed", "published") else ledger["state"]
        left = (state, *(ledger[name] for name in ("fence", "outcome", "slot", "attempts", "refunded")))
        # 1: of a row that was made without a claim.
        fence = ledger["fence"] if ledger["fence"] > 1 else 0
    return Operation(Verb.FINAL, at, at, (row["status"], left), fence, by="checker")


def _of_asked(call: Recorded) -> Iterator[tuple[str, Operation]]:
    """Yield the operation of each run that the call names."""
    rows: dict[tuple[str, int], Row] = {}
    if isinstance(call.rows, list):
        rows = {(row["run_id"], row.get("fence", 0)): row for row in call.rows}
    for run_id, *asked in call.asked:
        fence = asked[0] if asked else 0
        operation = Operation(
            verb=call.verb,
            invoked=call.invoked,
            fence=fence,
            worker=call.arguments.get("worker_id"),
            lease=call.arguments.get("lease", 0.0) if call.verb is not Verb.CLAIM else 0.0,
            asked=tuple(asked[1:]),
            by=call.by,
        )
        if not call.is_lost:
            row = rows.get((run_id, fence)) or rows.get((run_id, 0))
            answer = _ANSWERS.get(call.verb, lambda _, answer: answer)(row, call.rows)
            # What may have skipped the run, and does not say so, has no answer.
            if answer is Lost.LOST:
                if call.verb is Verb.RETURN_SLOT:
                    yield run_id, operation
                continue
            operation = replace(operation, answered=call.answered, answer=answer)
        yield run_id, operation


def _begun(row: Row | None, _: Any) -> Answer:
    if row is None:
        return (Held.REFUSED,)
    if row["state"] == "locked":
        return (Held.LOCKED,)
    if row["state"] == "running":
        return ("begun", row["attempts"])
    return ("rejected",) if row["rejected"] else ("skipped", row["slot"] == "due")


def _settled(row: Row | None, _: Any) -> Answer:
    if row is None:
        return None
    return Held.LOCKED if row["outcome"] is None else (row["outcome"], row["ended"], row["slot"] == "due")


_ANSWERS: dict[Verb, Any] = {
    Verb.BEGIN: _begun,
    Verb.RECOVER: lambda row, _: row and (Held.LOCKED if row["state"] == "locked" else row["attempts"]),
    Verb.HEARTBEAT: lambda row, _: row and row["renewed"],
    Verb.CHECKPOINT: lambda row, _: row is not None,
    Verb.SETTLE: _settled,
    Verb.REFUSE: lambda row, _: row["slot"] == "due" if row else Lost.LOST,
    Verb.RELEASE: lambda row, _: row["outcome"] if row else Lost.LOST,
    Verb.RETURN_SLOT: lambda _row, _: Lost.LOST,
}


def _of_chosen(call: Recorded) -> Iterator[tuple[str, Operation]]:
    """Yield the operation of each run that the statement chose."""
    asked: tuple[Answer, ...] = ()
    if call.verb is Verb.REAP:
        asked = call.arguments["policy"], call.arguments["max_attempts"]
    for row in call.rows:
        answer: Answer = True
        if call.verb is Verb.CLAIM:
            answer = row["fence"]
        elif call.verb is Verb.REAP:
            answer = row["fence"], row["outcome"]
        fence = row["fence"] if call.verb is Verb.CLAIM else 0
        yield row["run_id"], Operation(call.verb, call.invoked, call.answered, answer, fence, asked=asked, by=call.by)


_CHOOSING = dict.fromkeys((Verb.CLAIM, Verb.REAP, Verb.RETRY, Verb.ADOPT), _of_chosen)


def _lost_ones(known: Sequence[Operation], lost: Iterable[Recorded]) -> Iterator[Operation]:
    """Yield what calls without an answer may have done to a run. A claim must have given a fence that is seen later."""
    claimed = {each.fence for each in known if each.verb is Verb.CLAIM}
    unexplained = {each.fence for each in known if each.fence} - claimed
    created = min((each.invoked for each in known), default=NEVER)
    for call in lost:
        if call.answered < created:
            continue
        asked: tuple[Answer, ...] = ()
        if call.verb is Verb.REAP:
            asked = call.arguments["policy"], call.arguments["max_attempts"]
        for fence in unexplained if call.verb is Verb.CLAIM else {0}:
            yield Operation(call.verb, call.invoked, fence=fence, asked=asked, by=call.by)
