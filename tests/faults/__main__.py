"""`python -m tests.faults`: trials by seed, a table for each, and one over all. Ends with 0 where all is well."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from tests.faults.ground import ONE_STEP, SEVERAL_STEPS, ground
from tests.faults.report import Report, print_summary, print_trial
from tests.faults.schedule import make_plan
from tests.faults.system import Execution, System
from tests.faults.trial import RESUME, Conditions, run_trial


def main() -> int:
    """Carry out the trials that the arguments ask for."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"--seeds {arguments.seeds} tries nothing: expected 1 or more")
    # So that everything is cleaned up: the default would end this process on the spot.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seeds = arguments.seed or list(range(1, arguments.seeds + 1))
    reports: list[Report] = []
    resume = arguments.lost_runs == RESUME
    # Only Orcheo's executor has steps.
    execution = Execution.ORCHEO if resume else arguments.executor
    orcheo = arguments.system is System.STOCK or execution is Execution.ORCHEO
    with ground(orcheo=orcheo, uploaded=SEVERAL_STEPS if resume else ONE_STEP) as shared:
        for seed in seeds:
            plan = make_plan(seed, runs=arguments.runs, seconds=arguments.seconds)
            policy = arguments.lost_runs or ("fail" if seed % 2 else "requeue")
            conditions = Conditions(arguments.system, execution, policy)
            verdict = run_trial(plan, shared, conditions)
            report = Report.of(verdict, conditions)
            reports.append(report)
            print_trial(report, verdict)
            if report.red or arguments.keep:
                print(f"kept: {verdict.folder}", flush=True)
            else:
                verdict.discard()
    print_summary(reports)
    if arguments.json:
        arguments.json.write_text(json.dumps([report.plain() for report in reports], indent=2) + "\n")
    return 1 if any(report.red for report in reports) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, action="append", help="one seed; may be given again")
    parser.add_argument("--seeds", type=int, default=3, help="so many seeds, from 1 (default %(default)s)")
    parser.add_argument("--runs", type=int, default=500, help="runs a trial (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of faults, at least (default %(default)g)")
    parser.add_argument("--system", type=System, choices=list(System), default=System.OURS)
    parser.add_argument("--executor", type=Execution, choices=list(Execution), default=Execution.PLAY)
    parser.add_argument(
        "--lost-runs",
        choices=["fail", "requeue", RESUME],
        help="odd seeds fail, even ones requeue if not given; resume: runs of several steps, --executor orcheo",
    )
    parser.add_argument("--json", type=Path, help="write the reports to this file")
    parser.add_argument("--keep", action="store_true", help="keep logs and tables of green trials, too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
