"""Where a run is meant to leave something else than with the stock worker.

Each difference says exactly what is expected instead, made of what the stock worker's run has left. Its title is a
heading in docs/differences.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tests.stock.leftovers import Leftovers

_MAX_ERROR_CHARACTERS = 20_000


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference that is meant."""

    title: str
    expect: Callable[[Leftovers], Leftovers]
    """Return what ours is expected to leave where the stock worker has left this."""


def _errors(change: Callable[[str], str]) -> Callable[[Leftovers], Leftovers]:
    """Change the run's error text at each place where it is stored."""

    def expect(stock: Leftovers) -> Leftovers:
        run, history, steps = copy.deepcopy((stock.run, stock.history, stock.steps))
        assert history is not None
        last = run["payload"]["audit_log"][-1]["metadata"]
        places: list[dict[str, Any]] = [run["payload"], last, history, steps[-1]["payload"]]
        for place in places:
            place["error"] = change(place["error"])
        return replace(stock, run=run, history=history, steps=steps)

    return expect


PASSWORDS = Difference("Passwords in error texts", _errors(lambda text: text.replace("ada:hunter2@", "ada:***@")))
LONG_ERRORS = Difference("Long error texts", _errors(lambda text: text[:_MAX_ERROR_CHARACTERS] + " ..."))
MUTE_ERRORS = Difference("Errors without a text", _errors(lambda text: text or "MuteError"))

ALL = (PASSWORDS, LONG_ERRORS, MUTE_ERRORS)
CHECKPOINTS = "Checkpoints"
"""Of every run: those of the inputs may be left out, and metadata have the checksum of the graph."""
SLOTS = "Run slots of archived workflows"
STORED_INSTEAD = ("Values that PostgreSQL refuses", "Plugins")
"""Of runs that fail with the stock worker and succeed here: see `Kind.instead`."""
TITLES = (*(difference.title for difference in ALL), CHECKPOINTS, SLOTS, *STORED_INSTEAD)
