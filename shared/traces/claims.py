"""The spans of a dispatcher: a claim and its publication. Claims of one statement share its times."""

from __future__ import annotations

import time
from collections.abc import Collection

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.traces.clock import epoch_ns
from orcheo_dispatch.shared.traces.sink import SpanSink


class ClaimTraces:
    """Makes spans of claims; does nothing without a sink. Times are those of `time.monotonic()`."""

    def __init__(self, sink: SpanSink | None) -> None:
        self._sink = sink

    def claimed(self, claims: Collection[Claim], since: float) -> None:
        """Note claims that one statement made, which began at `since`."""
        self._put("claim", claims, since, outcome="claimed")

    def published(self, claims: Collection[Claim], since: float) -> None:
        """Note claims whose messages are in Redis."""
        self._put("publish", claims, since, outcome="published")

    def unpublished(self, claims: Collection[Claim], since: float) -> None:
        """Note claims that were released because Redis did not take their messages."""
        self._put("publish", claims, since, outcome="released")

    def _put(self, name: str, claims: Collection[Claim], since: float, *, outcome: str) -> None:
        if self._sink is None or not claims:
            return
        begin, end = epoch_ns(since), epoch_ns(time.monotonic())
        for claim in claims:
            if self._sink.samples(claim.run_id):
                self._sink.put(
                    name,
                    claim,
                    begin=begin,
                    end=end,
                    attributes={"orcheo.run.outcome": outcome},
                    kind="producer" if name == "publish" else "internal",
                    root=name == "claim",
                    failed=outcome == "released",
                )
