"""Execute one statement for many items; if the batch fails, execute it for parts, so that no item fails another.

Nine hundred good rows must not fail for one that a trigger refuses. The batch is divided, and divided again where a
part fails, breadth first: so the parts that succeed never wait for those that have failed twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from orcheo_dispatch.shared.errors import DatabaseError

PARTS = 8
"""Into how many a part that failed is divided. For `n` items of which one is bad about `8 log8(n)` statements are sent,
and where all are bad `1.15 n`: never more than that."""


@dataclass(frozen=True, slots=True)
class Part[T, R]:
    """Some items, and what became of them: a result, or an error.

    Where it is an error of `one` item, Postgres refused that item alone, and took others at that time. Otherwise
    Postgres was unavailable, or refuses all.
    """

    items: Sequence[T]
    result: R | None = None
    error: DatabaseError | None = None
    one: bool = False


def write_apart[T, R](items: Sequence[T], write: Callable[[Sequence[T]], R]) -> Iterator[Part[T, R]]:
    """Write the items in as few statements as possible; yield parts as they are written, each item in one of them.

    `write` is one transaction and changes nothing for items that it is not given. It is called with no items to find
    out whether Postgres refuses the statement itself: for want of a right or a table, because it takes no writes, or
    because a table is locked. Raises what `write` raises that is no `DatabaseError`.
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
