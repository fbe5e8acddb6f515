"""The spans of a worker: begin, execute with an event for each finished step, and settle."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import datetime

import msgspec

from orcheo_dispatch.shared.ledger.model import Claim, Outcome
from orcheo_dispatch.shared.ledger.runs import Run
from orcheo_dispatch.shared.traces.clock import epoch_ns
from orcheo_dispatch.shared.traces.ids import SpanAddress, read_traceparent
from orcheo_dispatch.shared.traces.sink import MAX_EVENTS, SpanSink

_MAX_NAME = 200
_ERRORS = frozenset({Outcome.FAILED.value, Outcome.TIMED_OUT.value, Outcome.LOST.value})


class _Step(msgspec.Struct):
    """A row of a run's trace. Values of the update stay bytes: they are what nodes returned."""

    payload: dict[str, msgspec.Raw]
    at: datetime | None = None


_steps = msgspec.json.Decoder(_Step)


class RunTraces:
    """Makes spans of runs; does nothing without a sink."""

    def __init__(self, sink: SpanSink | None) -> None:
        self._sink = sink

    def begun(self, run: Run, since: float) -> RunTrace | None:
        """Note that a run has begun, by a statement that began at `since` (`time.monotonic()`).

        Returns what makes its further spans; None if there are none.
        """
        if self._sink is None or not self._sink.samples(run.run_id):
            return None
        return RunTrace(self._sink, run, since)

    def not_begun(self, claim: Claim, outcome: str, since: float) -> None:
        """Note that a run did not begin; `outcome` is a word."""
        if self._sink is None or not self._sink.samples(claim.run_id):
            return
        begin, end = epoch_ns(since), epoch_ns(time.monotonic())
        attributes = {"orcheo.run.outcome": outcome}
        self._sink.put("begin", claim, begin=begin, end=end, attributes=attributes, kind="consumer", failed=True)

    def stop(self) -> None:
        """Export what is left, within a few seconds."""
        if self._sink is not None:
            self._sink.stop()


class RunTrace:
    """Makes the spans of one run. Holds names of steps, never their results."""

    def __init__(self, sink: SpanSink, run: Run, since: float) -> None:
        self._sink = sink
        self._claim = run.claim
        self._attributes: dict[str, str | int] = {
            "orcheo.workflow.id": run.workflow_id,
            "orcheo.workspace.id": run.workspace_id or "",
            "orcheo.run.attempt": run.attempt,
        }
        self._link = _caller_of(run)
        self._steps: deque[tuple[str, int]] | tuple[()] = ()
        self._finished = 0
        began, self._begun_at = epoch_ns(since), epoch_ns(time.monotonic())
        self._put("begin", began, self._begun_at, "begun", kind_consumer=True)

    def stepped(self, rows: Iterable[str]) -> None:
        """Note finished steps, given as rows of Orcheo's `execution_history_steps` in JSON."""
        now = epoch_ns(time.monotonic())
        steps = self._steps = self._steps or deque(maxlen=MAX_EVENTS)
        for row in rows:
            try:
                step = _steps.decode(row)
                at = now if step.at is None else round(step.at.timestamp() * 1e9)
            except Exception:  # noqa: BLE001, S112 - workflow code can send any row, and a span must not cost a run
                continue
            for name in _names(step.payload):
                steps.append((name[:_MAX_NAME], min(max(at, self._begun_at), now)))
                self._finished += 1

    def settled(self, *, how: str, outcome: str, ended_at: float) -> None:
        """Note that the end of the run is written, or is not to be written by this worker.

        `how` is how it ended in its runner, at `ended_at` (`time.monotonic()`).
        """
        end, now = max(self._begun_at, epoch_ns(ended_at)), epoch_ns(time.monotonic())
        failed = outcome in _ERRORS
        self._sink.put(
            "execute",
            self._claim,
            begin=self._begun_at,
            end=end,
            attributes={**self._attributes, "orcheo.run.outcome": how},
            failed=failed,
            events=tuple(self._steps),
            events_left_out=self._finished - len(self._steps),
            link=self._link,
        )
        self._put("settle", end, now, outcome)

    def _put(self, name: str, begin: int, end: int, outcome: str, *, kind_consumer: bool = False) -> None:
        self._sink.put(
            name,
            self._claim,
            begin=begin,
            end=end,
            attributes={**self._attributes, "orcheo.run.outcome": outcome},
            kind="consumer" if kind_consumer else "internal",
        )


def _names(payload: Mapping[str, msgspec.Raw]) -> list[str]:
    """Return the nodes that an update is of: none if it is the mark at the end of a trace, `{"status": "..."}`."""
    if bytes(payload.get("status", b"{")).lstrip().startswith(b'"'):
        return []
    return [name for name in payload if not name.startswith("__")]


def _caller_of(run: Run) -> SpanAddress | None:
    """Return the span of whoever called the webhook: Orcheo stores the headers of the request in the run's inputs."""
    headers = run.inputs.get("headers")
    if run.triggered_by != "webhook" or not isinstance(headers, Mapping):
        return None
    return read_traceparent(headers.get("traceparent"))
