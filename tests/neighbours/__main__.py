"""`python -m tests.neighbours`: each bad neighbour beside good runs, under each isolation mode and policy; a table."""

from __future__ import annotations

import argparse
import signal
import sys

from tests.faults.ground import ground
from tests.neighbours.cases import CASES
from tests.neighbours.trial import ISOLATIONS, POLICIES, Found, Trial


def main() -> int:
    """Carry out what the arguments ask for; return 0 where nobody was harmed who must not be."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cases = [case for case in CASES if not arguments.only or any(part in case.name for part in arguments.only)]
    found: list[Found] = []
    with ground(orcheo=False) as shared:
        for isolation in arguments.isolation or ISOLATIONS:
            for policy in arguments.policy or POLICIES:
                print(f"--- {isolation}, {policy}", flush=True)
                for each in Trial(isolation, policy).carry_out(shared, cases):
                    found.append(each)
                    again = "" if each.again is None else f" | again: {each.again}"
                    mark = "  " if each.is_wanted else "! "
                    print(f"{mark}{each.case}: {each.first}{again}", flush=True)
                    for why in (*each.first.why, *(each.again.why if each.again else ())):
                        print(f"      {why}", flush=True)
    wrong = [each for each in found if not each.is_wanted]
    print(f"{len(found)} trials, {len(wrong)} in which runs were harmed that must not be")
    return 1 if wrong else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.neighbours", description=__doc__)
    parser.add_argument("--only", action="append", help="cases whose names have this in them; may be given again")
    parser.add_argument("--isolation", action="append", choices=ISOLATIONS)
    parser.add_argument("--policy", action="append", choices=POLICIES)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
