"""IDs of traces and spans, derived from what every process knows of a run: only `(run_id, fence)` crosses Redis.

All spans of a run have the trace ID `trace_id_of(run_id)`, in whichever process they are made. The span of a claim has
the ID `claim_span_id`, so that a worker can name it as the parent of its spans without having been told of it.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from hashlib import blake2b

from orcheo_dispatch.shared.ledger.model import Claim

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")
_MAX_TRACEPARENT = 512


@dataclass(frozen=True, slots=True)
class SpanAddress:
    """The IDs of a span that another program made."""

    trace_id: int
    span_id: int


def trace_id_of(run_id: str) -> int:
    """Return the trace ID of a run: the first 128 bits of BLAKE2b, as `b2sum --length 128` prints them.

    The ID of the run itself will not do: sampling by ratio needs bits that are all random.
    """
    return int.from_bytes(blake2b(run_id.encode(), digest_size=16).digest()) or 1


def claim_span_id(claim: Claim) -> int:
    """Return the span ID of a claim."""
    return int.from_bytes(blake2b(f"{claim.run_id}\n{claim.fence}".encode(), digest_size=8).digest()) or 1


def new_span_id() -> int:
    """Return a random span ID."""
    return random.getrandbits(64) or 1


def read_traceparent(text: object) -> SpanAddress | None:
    """Return the span that a W3C `traceparent` header names; None if `text` is not one."""
    if not isinstance(text, str) or len(text) > _MAX_TRACEPARENT:
        return None
    found = _TRACEPARENT.fullmatch(text.strip())
    if found is None:
        return None
    address = SpanAddress(int(found["trace"], 16), int(found["span"], 16))
    return address if address.trace_id and address.span_id else None
