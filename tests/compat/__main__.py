"""`python -m tests.compat`: an environment for each set of releases, one after the other, and a table of all."""

from __future__ import annotations

import argparse
import sys

from tests.compat.report import table, write
from tests.compat.sets import SETS, build
from tests.compat.trial import PART, carry_out


def main() -> int:
    """Carry out the trials that the arguments ask for; return 0 where all are good."""
    arguments = _arguments()
    trials = []
    for wanted in SETS:
        if arguments.only and wanted.name not in arguments.only:
            continue
        print(f"--- {wanted.name}: {' '.join(wanted.requirements)}", flush=True)
        trials.append(carry_out(build(wanted), tuple(arguments.tests) or PART))
        print(table(trials[-1:]), flush=True)
        if arguments.write:
            write(trials[-1:])
    print(table(trials))
    return 0 if all(trial.is_good for trial in trials) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.compat", description=__doc__)
    names = [each.name for each in SETS]
    parser.add_argument("--only", action="append", choices=names, help="one set of releases; may be given again")
    parser.add_argument("--write", action="store_true", help="write the table into docs/compatibility.md")
    parser.add_argument("tests", nargs="*", help=f"files of tests (default: {' '.join(PART)})")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
