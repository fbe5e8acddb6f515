"""Find out which claims have messages in Redis, reading in bounded pieces."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import redis

from orcheo_dispatch.shared.broker.app import broker_errors, claims_in, claims_of
from orcheo_dispatch.shared.broker.installation import OLD_UNACKED, Installation
from orcheo_dispatch.shared.ledger.model import Claim

_PIECE = 500
_MOST_MESSAGES = 100_000
"""Maximum number of messages read from a queue; claims further back count as waiting."""
_MOST_OLD_MESSAGES = 10_000
"""Maximum number of messages read from a named queue, or that of earlier releases; claims further back are published
again."""


@dataclass(frozen=True, slots=True)
class Held:
    """The claims whose messages Redis holds."""

    waiting: frozenset[Claim]
    """Claims in the queue, not delivered yet."""
    delivered: frozenset[Claim]
    """Claims that were delivered to a worker of an earlier release and not acknowledged yet."""


def held_claims(client: redis.Redis, installation: Installation, claims: Collection[Claim]) -> Held:
    """Return which of these claims have messages in Redis. Raises `BrokerError` if that cannot be read."""
    missing = set(claims)
    with broker_errors():
        waiting, all_read = _take(missing, _queued(client, installation.runs, _MOST_MESSAGES))
        if not all_read:
            waiting |= missing
            missing = set()
        for name in sorted({claim.queue for claim in claims if claim.queue is not None}):
            waiting |= _take(missing, _queued(client, installation.queue(name), _MOST_OLD_MESSAGES))[0]
        waiting |= _take(missing, _queued(client, installation.old_runs, _MOST_OLD_MESSAGES))[0]
        delivered = _take(missing, _unacked(client, installation.unacked))[0]
        delivered |= _take(missing, _unacked(client, OLD_UNACKED))[0]
    return Held(frozenset(waiting), frozenset(delivered))


def _take(missing: set[Claim], pieces: Iterator[list[Claim] | None]) -> tuple[set[Claim], bool]:
    """Remove the claims that are found from `missing`; return them, and whether everything was read."""
    found: set[Claim] = set()
    if not missing:
        return found, True
    for piece in pieces:
        if piece is None:
            return found, False
        found |= missing.intersection(piece)
        missing -= found
        if not missing:
            break
    return found, True


def _queued(client: redis.Redis, queue: str, most: int) -> Iterator[list[Claim] | None]:
    """Yield the claims of each piece of a queue; finally None if it is longer than `most`.

    Starts at the head, where messages are added: new ones shift the rest towards the tail, so no waiting message is
    missed, though some may be read twice.
    """
    for first in range(0, most, _PIECE):
        piece: Any = client.lrange(queue, first, first + _PIECE - 1)
        yield [claim for raw in piece for claim in claims_of(raw)]
        if len(piece) < _PIECE:
            return
    yield None


def _unacked(client: redis.Redis, key: str) -> Iterator[list[Claim] | None]:
    """Yield the claims of each piece of the messages that earlier releases keep until workers acknowledge them."""
    cursor, read = 0, 0
    while read < _MOST_MESSAGES:
        answer: Any = client.hscan(key, cursor, count=_PIECE)
        cursor, piece = answer
        yield [claim for raw in piece.values() for claim in _claims_of_unacked(raw)]
        read += len(piece)
        if cursor == 0:
            return


def _claims_of_unacked(raw: bytes | str) -> list[Claim]:
    """Return the claims of an unacknowledged message, as kombu stores it: `[message, exchange, routing key]`."""
    try:
        return claims_in(json.loads(raw)[0])
    except (ValueError, LookupError, TypeError, RecursionError):
        return []
