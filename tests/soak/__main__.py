"""`make soak HOURS=1`, or `python -m tests.soak`.

Exit codes: 0 all curves are flat and every run succeeded; 1 they are not; 2 usage.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

from tests.soak.curves import LEAST_POINTS, Curve, judge, table
from tests.soak.stack import soak

_WARM_UP_SHARE = 0.3
_BUILD = Path(__file__).parents[2] / "build"


def main(arguments: list[str] | None = None) -> int:
    """Soak, print the table of verdicts, and write curves and plot to build/soak.*."""
    parser = argparse.ArgumentParser(prog="soak", description="Run a real stack under load, and report what grows.")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long; the first 30 %% are warm-up")
    parser.add_argument("--every", type=float, default=5.0, help="seconds from one sample to the next")
    parser.add_argument("--rate", type=float, default=20.0, help="runs a second")
    parser.add_argument("--kill-every", type=float, default=120.0, help="seconds from one kill of a worker to the next")
    asked = parser.parse_args(arguments)
    if min(asked.minutes, asked.every, asked.rate, asked.kill_every) <= 0:
        parser.error("all values must be above 0")
    seconds = 60 * asked.minutes
    if (1 - _WARM_UP_SHARE) * seconds < (LEAST_POINTS + 1) * asked.every:
        parser.error(
            f"--minutes {asked.minutes:g} with --every {asked.every:g} gives too few samples: expected at least"
            f" {LEAST_POINTS} after the warm-up, {_WARM_UP_SHARE:.0%} of the time"
        )
    result = soak(seconds=seconds, every=asked.every, per_second=asked.rate, kill_every=asked.kill_every, say=_say)
    _BUILD.mkdir(exist_ok=True)
    raw = {name: curve.points for name, curve in result.curves.items()}
    (_BUILD / "soak.json").write_text(json.dumps(raw))
    _draw(result.curves, _WARM_UP_SHARE * seconds)
    try:
        verdicts = {name: judge(curve, _WARM_UP_SHARE * seconds) for name, curve in result.curves.items()}
    except ValueError as error:
        print(f"soak: {error}; ended without being asked: {result.crashes or 'none'}")
        return 1
    print(table(verdicts))
    growing = [name for name, verdict in verdicts.items() if not verdict.flat]
    failed = {status: count for status, count in result.statuses.items() if status != "succeeded"}
    print(
        f"\n{asked.minutes:g} minutes, {asked.rate:g} runs/s, a worker killed {result.kills} times; runs:"
        f" {result.statuses}; ended without being asked: {result.crashes or 'none'};"
        f" not flat: {', '.join(growing) or 'none'}"
    )
    return 1 if growing or failed or result.crashes else 0


def _draw(curves: dict[str, Curve], warm_up: float) -> None:
    from tests.soak.plot import draw  # matplotlib is there in the environment of the benchmark alone

    draw(curves, warm_up, _BUILD / "soak.png")


def _say(text: str) -> None:
    print(f"[{datetime.now(UTC):%H:%M:%S}] {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
