"""`python -m tests.neighbours`: each bad neighbour beside good runs, under each isolation mode and policy; a table."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence

from tests.faults.ground import ground
from tests.neighbours import stock
from tests.neighbours.cases import CASES, Case
from tests.neighbours.table import table
from tests.neighbours.trial import ISOLATIONS, POLICIES, Found, Trial


def main() -> int:
    """Carry out what the arguments ask for; return 0 where nobody was harmed who must not be."""
    parser = _parser()
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cases = [case for case in CASES if not arguments.only or any(part in case.name for part in arguments.only)]
    if not cases:
        parser.error(
            f"no case has {' or '.join(arguments.only)} in its name; there are {', '.join(each.name for each in CASES)}"
        )
    isolations = arguments.isolation or ([] if arguments.stock else ISOLATIONS)
    found: list[Found] = []
    try:
        for each in _carry_out(cases, isolations, arguments.policy or POLICIES, with_stock=arguments.stock):
            found.append(each)
            _tell(each)
    finally:
        print(f"\n{table(found)}\n", flush=True)
    wrong = [each for each in found if not each.is_wanted]
    print(f"{len(found)} trials, {len(wrong)} in which runs were harmed that must not be")
    return 1 if wrong else 0


def _carry_out(
    cases: Sequence[Case], isolations: Sequence[str], policies: Sequence[str], *, with_stock: bool
) -> Iterator[Found]:
    if isolations:
        with ground(orcheo=False) as shared:
            for isolation in isolations:
                for policy in policies:
                    yield from Trial(isolation, policy).carry_out(shared, cases)
    if with_stock:
        with ground(orcheo=True, uploaded=stock.WORKFLOW) as shared:
            yield from stock.carry_out(shared, cases)


def _tell(found: Found) -> None:
    """Print what a case did as soon as it is known."""
    again = "" if found.again is None else f" | again: {found.again}"
    print(f"{'  ' if found.is_wanted else '! '}{found.column}: {found.case}: {found.first}{again}", flush=True)
    for why in (*found.first.why, *(found.again.why if found.again else ())):
        print(f"      {why}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.neighbours", description=__doc__)
    parser.add_argument("--only", action="append", help="cases whose names have this in them; may be given again")
    parser.add_argument("--isolation", action="append", choices=ISOLATIONS)
    parser.add_argument("--policy", action="append", choices=POLICIES)
    parser.add_argument(
        "--stock",
        action="store_true",
        help="the code of runs under Orcheo's own worker too; alone where no --isolation is given",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
