"""`python -m tests.upgrade`: upgrades from each earlier release, in each order, with and without kills."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.ground import ONE_STEP, SEVERAL_STEPS, Ground, ground
from tests.faults.system import Execution
from tests.support.database.databases import Database
from tests.support.pages import first_of_each
from tests.upgrade.course import Conditions, Order
from tests.upgrade.fleet import migrate
from tests.upgrade.judge import FAIL
from tests.upgrade.releases import RELEASES, Installed, NotInHistoryError, build
from tests.upgrade.report import table, write
from tests.upgrade.trial import Verdict, run_trial

_REQUEUE = "requeue"


def main() -> int:
    """Carry out the upgrades that the arguments ask for; return 0 where all is zero that must be."""
    arguments = _arguments()
    # So that everything is cleaned up: the default would end this process on the spot.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    verdicts: list[Verdict] = []
    try:
        installed = [build(release) for release in RELEASES if arguments.only in {None, release.name}]
    except NotInHistoryError as error:
        print(f"skipped, nothing was tried: {error}", file=sys.stderr)
        return 3
    for old in installed:
        for execution in arguments.executor or list(Execution):
            with _ground_of(old, execution) as shared:
                for conditions in _cases(execution, every=arguments.all):
                    if arguments.order not in {None, conditions.order}:
                        continue
                    verdict = run_trial(old, shared, conditions, seed=arguments.seed)
                    verdicts.append(verdict)
                    print(f"{table([verdict])}\n{first_of_each(verdict.findings)}", flush=True)
                    if verdict.findings or arguments.keep:
                        print(f"kept: {verdict.folder}", flush=True)
                    else:
                        verdict.discard()
    print(table(verdicts))
    if arguments.write:
        write(verdicts)
    return 1 if any(verdict.findings for verdict in verdicts) else 0


def _cases(execution: Execution, *, every: bool) -> list[Conditions]:
    """Return each order with kills and without, or a selection in which each of these is once."""
    dispatchers, workers = Order
    if execution is Execution.ORCHEO:
        cases = [Conditions(order, kills=True, execution=execution) for order in (workers, dispatchers)]
        return cases if every else cases[:1]
    if every:
        kinds = ((False, FAIL), (True, FAIL), (True, _REQUEUE))
        return [Conditions(order, kills=kills, lost_runs=policy) for order in Order for kills, policy in kinds]
    return [
        Conditions(dispatchers, kills=False),
        Conditions(workers, kills=True),
        Conditions(dispatchers, kills=True, lost_runs=_REQUEUE),
    ]


@contextmanager
def _ground_of(old: Installed, execution: Execution) -> Iterator[Ground]:
    """Make a ground whose template has the schema of the last release."""
    orcheo = execution is Execution.ORCHEO
    with TemporaryDirectory(prefix="orcheo-dispatch-upgrade-") as folder:

        def migrated(database: Database) -> None:
            migrate(old, database.dsn, Path(folder))

        with ground(orcheo=orcheo, uploaded=SEVERAL_STEPS if orcheo else ONE_STEP, migrated=migrated) as made:
            yield made


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.upgrade", description=__doc__)
    parser.add_argument("--only", choices=[each.name for each in RELEASES], help="one release to upgrade from")
    parser.add_argument("--order", type=Order, choices=list(Order), help="one order")
    parser.add_argument("--all", action="store_true", help="each order with kills and without, under each policy")
    parser.add_argument("--executor", type=Execution, action="append", choices=list(Execution))
    parser.add_argument("--seed", type=int, default=1, help="of the load (default %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep logs and tables of green trials, too")
    parser.add_argument("--write", action="store_true", help="write the table into docs/reliability.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
