"""What takes finished spans. Imports nothing of OpenTelemetry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.traces.ids import SpanAddress

Kind = Literal["internal", "producer", "consumer"]
MAX_EVENTS = 128
"""Maximum number of events of a span, as in OpenTelemetry's SDK; the latest are kept."""


class SpanSink(Protocol):
    """Takes finished spans. Thread-safe; never blocks and never raises because of a collector."""

    def samples(self, run_id: str) -> bool:
        """Return whether spans of this run are exported; the same in every process with the same sampler."""

    def put(
        self,
        name: str,
        claim: Claim,
        *,
        begin: int,
        end: int,
        attributes: Mapping[str, str | int],
        kind: Kind = "internal",
        root: bool = False,
        failed: bool = False,
        events: Sequence[tuple[str, int]] = (),
        events_left_out: int = 0,
        link: SpanAddress | None = None,
    ) -> None:
        """Export a span of a run; `begin`, `end` and times of events are nanoseconds since the epoch.

        The span of the claim is the root of an attempt's spans, and the parent of all others.
        """

    def stop(self) -> None:
        """Export what is left, within a few seconds, and drop the rest."""
