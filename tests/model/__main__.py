"""Search within wider bounds than the suite does, and print a counterexample for each rule that is dropped."""

from __future__ import annotations

import time

from tests.model.bounds import FAR, NEAR
from tests.model.explore import explore, without
from tests.model.protocol import Protocol
from tests.model.rules import Rule


def main() -> int:
    """Print a line for each search; return 1 if a property of the whole protocol is broken, or a rule is not needed."""
    wrong = 0
    for bounds in (*NEAR, *FAR):
        began = time.monotonic()
        found = explore(Protocol(**bounds))
        wrong += found.broken is not None
        result = found.broken or "all properties hold"
        print(f"{bounds}: {found.states:,} states, {found.moves:,} steps, {time.monotonic() - began:.0f} s: {result}")
        print("".join(f"    {step}\n" for step in found.counterexample), end="")
    for rule in Rule:
        found = without(rule)
        wrong += found.broken is None
        print(f"without '{rule}': {found.broken or 'nothing is broken: the rule is not needed'}")
        print("".join(f"    {step}\n" for step in found.counterexample), end="")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
