"""`python -m tests.mutants`: record the tests, try the mutants of all statements, and print how many were killed."""

from __future__ import annotations

import argparse
import signal
import sys

from tests.mutants.equivalent import listed, stale
from tests.mutants.results import Fate, Recording, Results, counted
from tests.mutants.slot import TESTS
from tests.mutants.statements import ROOT, Statement, statements
from tests.mutants.trial import Trial

_FOLDER = ROOT / "build" / "mutants"


def main() -> int:
    """Do what the arguments ask for; return 1 if a mutant has survived."""
    parser = _parser()
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    everything = statements()
    equivalent = listed()
    if wrong := stale(equivalent, everything):
        print("\n".join(wrong))
        return 2
    if unknown := [name for name in arguments.only if not _chosen(everything, [name])]:
        names = sorted(each.name for each in everything.values())
        parser.error(f"no statement {', '.join(unknown)}; there are {', '.join(names)}")
    chosen = _chosen(everything, arguments.only)
    trial = Trial(Recording(), Results(), equivalent, arguments.budget, arguments.tests or TESTS)
    trial.note_equivalent(chosen)
    if not arguments.report:
        if arguments.record:
            trial.record(
                _FOLDER, arguments.slots, lambda test, starts: arguments.record in test and starts <= arguments.slow
            )
        trial.run(_FOLDER, arguments.slots, chosen, again=arguments.again)
    return _report(trial.results, chosen)


def _chosen(everything: dict[str, Statement], only: list[str]) -> list[Statement]:
    if not only:
        return [*everything.values()]
    # In the order of the arguments.
    return [each for name in only for each in everything.values() if name in (each.name, each.key)]


def _report(results: Results, chosen: list[Statement]) -> int:
    for statement in chosen:
        for change, result in results.of(statement).items():
            if result.fate is Fate.SURVIVED:
                print(f"survived {result.tests} tests: {statement.key}: {change}")
    print(f"{'':50} {'mutants':>8} {'killed':>7} {'timeout':>8} {'equivalent':>11} {'invalid':>8} {'survived':>9}")
    for statement in chosen:
        if results.of(statement):
            print(f"{statement.key[-50:]:50} {_figures(results, [statement])}")
    print(f"{'all':50} {_figures(results, chosen)}")
    return 1 if counted(results, chosen)[Fate.SURVIVED] else 0


def _figures(results: Results, chosen: list[Statement]) -> str:
    found = counted(results, chosen)
    return (
        f"{found.total():8} {found[Fate.KILLED]:7} {found[Fate.TIMED_OUT]:8} {found[Fate.EQUIVALENT]:11} "
        f"{found[Fate.INVALID]:8} {found[Fate.SURVIVED]:9}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument(
        "--only", action="append", default=[], help="name of a statement, such as CLAIM; may be given again"
    )
    parser.add_argument("--slots", type=int, default=2, help="mutants at a time (default %(default)s)")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of tests per mutant (default %(default)g)")
    parser.add_argument("--record", default="tests/", help="record tests with this in their name (default %(default)s)")
    parser.add_argument("--tests", action="append", help="file or folder of tests to run; may be given again")
    parser.add_argument("--slow", action="store_true", help="record tests that start processes, too")
    parser.add_argument("--again", action="store_true", help="try mutants that have survived again")
    parser.add_argument("--report", action="store_true", help="print what is known and try nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
