"""`python -m tests.hosts`: our processes and their servers on hosts of their own, under cuts, delay, loss and failover.

Exit codes: 0 nothing was found; 1 a promise was not kept; 2 usage; 3 no network namespaces here, so nothing was tried.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from tempfile import mkdtemp

from tests.hosts.network import why_not
from tests.hosts.report import table, write
from tests.hosts.scenarios import SCENARIOS
from tests.hosts.servers import template
from tests.hosts.trial import Verdict, run_trial
from tests.support.pages import first_of_each


def main() -> int:
    """Carry out the scenarios that the arguments ask for."""
    parser = _parser()
    arguments = parser.parse_args()
    chosen = [each for each in SCENARIOS if all(word in each.name for word in arguments.only)]
    if not chosen:
        names = "\n  ".join(each.name for each in SCENARIOS)
        parser.error(f"no scenario has {' and '.join(map(repr, arguments.only))} in its name; there are\n  {names}")
    # So that everything is cleaned up: the default would end this process on the spot.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if reason := why_not():
        print(f"skipped, nothing was tried: {reason}", file=sys.stderr)
        return 3
    verdicts: list[Verdict] = []
    with template(Path(mkdtemp(prefix="orcheo-dispatch-hosts-"))) as made:
        for scenario in chosen:
            verdict = run_trial(scenario, made, seed=arguments.seed, lost_runs=arguments.lost_runs)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.hosts", description=__doc__)
    parser.add_argument(
        "--only", action="append", default=[], help="scenarios with this in their name; may be given again"
    )
    parser.add_argument("--lost-runs", choices=["fail", "requeue"], help="instead of each scenario's own policy")
    parser.add_argument("--seed", type=int, default=1, help="of the load (default %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep logs and tables of green trials, too")
    parser.add_argument("--write", action="store_true", help="write the table into docs/reliability.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
