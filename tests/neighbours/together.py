"""Several bad neighbours at a time: the short form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tests.neighbours.cases import CASES, Case, Place


def together(cases: Sequence[Case]) -> Case:
    """Return all of these as one case, with the settings of each."""

    @contextmanager
    def bad(place: Place) -> Iterator[None]:
        with ExitStack() as stack:
            for case in cases:
                stack.enter_context(case.bad(place))
            yield

    settings = tuple(dict(each for case in cases for each in case.settings).items())
    return Case(
        ", ".join(case.name for case in cases), bad, repeats=any(case.repeats for case in cases), settings=settings
    )


def named(*names: str) -> Case:
    """Return the cases with these names as one."""
    found = {case.name: case for case in CASES}
    return together([found[name] for name in names])
