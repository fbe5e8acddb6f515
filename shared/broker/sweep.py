"""Remove our messages from a queue that others share, in bounded pieces; the others keep their place and order.

New messages are at the head, so each sweep begins there. The rest is scanned by a cursor that goes through the whole
queue, a few pieces per sweep. So the cost of a sweep does not depend on the length of the queue. Redis itself selects
the messages that may be ours: messages of others, of whatever size, are not transferred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import redis

PIECE = 250
"""Number of messages that Redis scans in one step."""
_PIECES_OF_HEAD = 4
_MOST_PIECES_OF_HEAD = 20
"""Maximum number of pieces at the head per sweep, if each piece contains messages of ours."""
_PIECES_OF_REST = 4

_FIND = """
local found = {}
for _, message in ipairs(redis.call('LRANGE', KEYS[1], ARGV[1], ARGV[2])) do
    if string.find(message, ARGV[3], 1, true) then found[#found + 1] = message end
end
return found
"""

# Messages are found by value, because consumers and producers may have shifted them meanwhile: nothing else is removed.
# Each is marked, and all marks are removed together: one LREM per message would read the whole queue each time.
_REMOVE = """
local ours, removed = {}, 0
for i = 4, #ARGV do ours[ARGV[i]] = true end
local first = tonumber(ARGV[1])
if first < 0 then first = math.max(first, -redis.call('LLEN', KEYS[1])) end
for i, message in ipairs(redis.call('LRANGE', KEYS[1], first, ARGV[2])) do
    if ours[message] then
        redis.call('LSET', KEYS[1], first + i - 1, ARGV[3])
        removed = removed + 1
    end
end
-- From the end at which they are: LREM stops after the last of them.
if removed > 0 then redis.call('LREM', KEYS[1], first < 0 and -removed or removed, ARGV[3]) end
return removed
"""
_MARK = "orcheo-dispatch: taken out"

type Take = Callable[[Sequence[bytes]], Iterable[bytes]]
"""Yields those of the given messages that may be removed."""


class Sweep:
    """Sweeps one queue. Calls `take` with messages that contain `needle`, and removes those that it yields."""

    def __init__(self, client: redis.Redis, queue: str, *, needle: str, take: Take) -> None:
        self._client = client
        self._queue = queue
        self._needle = needle
        self._take = take
        self._find = client.register_script(_FIND)
        self._remove = client.register_script(_REMOVE)
        self._seen = 0
        """Number of messages from the tail that the cursor has passed."""

    def once(self) -> int:
        """Sweep once; return how many messages remain in the queue. Raises errors of redis-py and of `take`."""
        self._sweep_head()
        for _ in range(_PIECES_OF_REST):
            self._sweep_rest()
        left: Any = self._client.llen(self._queue)
        return int(left)

    def oldest(self) -> bool:
        """Take messages out of the piece at the tail; return whether any was removed. Raises what `once` raises."""
        _, removed = self._take_out(-PIECE, -1, -2 * PIECE, -1)
        return removed > 0

    def _sweep_head(self) -> None:
        first = 0
        for n in range(_MOST_PIECES_OF_HEAD):
            found, removed = self._take_out(first, first + PIECE - 1, first, first + 2 * PIECE)
            if n >= _PIECES_OF_HEAD - 1 and not found:
                return
            first += PIECE - removed

    def _sweep_rest(self) -> None:
        """Scan the next piece from the tail towards the head; start again at the end."""
        first, last = -self._seen - PIECE, -self._seen - 1
        _, removed = self._take_out(first, last, first, -max(1, self._seen - PIECE))
        length: Any = self._client.llen(self._queue)
        self._seen = self._seen + PIECE - removed if self._seen + PIECE < length else 0

    def _take_out(self, first: int, last: int, remove_first: int, remove_last: int) -> tuple[int, int]:
        """Return how many messages of this piece may be ours, and how many of them were removed."""
        found: Any = self._find(keys=[self._queue], args=[first, last, self._needle])
        ours: list[bytes] = []
        try:
            # The oldest first, as they were sent.
            ours.extend(self._take(found[::-1]) if found else ())
        finally:
            # Even if `take` raises, so that it is not called again for messages that it has accepted.
            removed: Any = ours and self._remove(keys=[self._queue], args=[remove_first, remove_last, _MARK, *ours])
        return len(found), int(removed or 0)
