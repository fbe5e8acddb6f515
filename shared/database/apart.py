"""Execute one statement for many items; if the batch fails, execute it for parts, so that no item fails another.

Nine hundred good rows must not fail because a trigger refuses one. A batch that fails is divided into parts, and so is
each part that fails, breadth first: parts that succeed never wait for parts that have failed twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from orcheo_dispatch.shared.errors import DatabaseError

PARTS = 8
"""Number of parts that a failed part is divided into. For `n` items of which one is bad, about `8 log8(n)` statements
are sent; if all are bad, `1.15 n`, which is the maximum."""


@dataclass(frozen=True, slots=True)
class Part[T, R]:
    """Some items, and their result or error.

    If `one` is true, Postgres refused this single item, while it accepted the statement itself. Otherwise an error
    means that Postgres was unavailable, or refuses all items.
    """

    items: Sequence[T]
    result: R | None = None
    error: DatabaseError | None = None
    one: bool = False


def write_apart[T, R](items: Sequence[T], write: Callable[[Sequence[T]], R]) -> Iterator[Part[T, R]]:
    """Write the items in as few statements as possible; yield parts as they are written, each item in one of them.

    `write` is one transaction and changes nothing for items that it is not given. It is called with no items to find
    out whether Postgres refuses the statement itself: because a right or a table is missing, the server is read-only,
    or a table is locked. Raises any exception of `write` that is not a `DatabaseError`.
    """
    parts: deque[Sequence[T]] = deque([items])
    checked = False
    while parts:
        part = parts.popleft()
        try:
            result = write(part)
        except DatabaseError as error:
            refusal = error
            if error.answered and not checked:
                try:
                    write(part[:0])
                except DatabaseError as general:
                    refusal = general
                else:
                    checked = True
            if not (error.answered and checked):
                rest = [item for each in (part, *parts) for item in each]
                yield Part(rest, error=refusal)
                return
            if len(part) == 1:
                yield Part(part, error=error, one=True)
            else:
                size = -(-len(part) // PARTS)
                parts.extend(part[start : start + size] for start in range(0, len(part), size))
        else:
            yield Part(part, result)
