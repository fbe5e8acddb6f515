"""The benchmark: `make bench`, or `python -m tests.bench`.

Exit codes: 0 it ran to its end, whatever it found; 1 a measurement failed; 2 usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from tests.bench import measurements, report
from tests.bench.machine import machine, versions
from tests.bench.result import Measurement, Report
from tests.bench.setting import Scale, Setting


def main(arguments: list[str] | None = None) -> int:
    """Measure, or read what was measured; print it; write the page where that is asked for."""
    asked = _parser().parse_args(arguments)
    if asked.source is not None:
        try:
            found = Report.from_json(asked.source.read_text())
        except (OSError, KeyError, TypeError, ValueError) as error:
            print(f"bench: {asked.source} is no report: {type(error).__name__}", file=sys.stderr)
            return 2
        failed = False
    else:
        if asked.json is not None:
            asked.json.parent.mkdir(parents=True, exist_ok=True)
        scale = Scale(1 if asked.quick else asked.rounds, asked.quick, asked.share)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _interrupt)
        try:
            found, failed = _measure(asked.only, scale, asked.json)
        except KeyboardInterrupt:
            print("\nbench: interrupted; everything is stopped", file=sys.stderr)
            return 130
    print(report.targets(found) if asked.ratios else report.summary(found))
    if asked.write:
        report.write(found)
    return 1 if failed else 0


def _measure(names: list[str], scale: Scale, output: Path | None) -> tuple[Report, bool]:
    """Measure one after the other, keeping what was found so far; return it and whether any failed."""
    failed = False
    with ExitStack() as stack:
        _say("starting PostgreSQL and Redis")
        setting = Setting(stack)
        found = Report(datetime.now(UTC).isoformat(timespec="seconds"), versions(setting), machine(setting))
        for name in names:
            _say(f"{name}: begins")
            began = time.monotonic()
            try:
                setting.empty()
                measured: Measurement = measurements.load(name)(setting, scale)
            except Exception as error:
                failed = True
                traceback.print_exc()
                _say(f"{name}: failed, {type(error).__name__}: {error}")
                continue
            measured = replace(measured, seconds=time.monotonic() - began)
            _say(f"{name}: done in {measured.seconds:.0f} s")
            found = replace(found, measurements=(*found.measurements, measured))
            if output is not None:
                output.write_text(found.to_json())
    return found, failed


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description="Measure orcheo-dispatch and its peers, side by side.")
    parser.add_argument("--only", type=_names, default=list(measurements.ALL), help="measurements, by comma")
    parser.add_argument("--rounds", type=_positive, default=2, help="rounds that count, 2 by default")
    parser.add_argument("--share", type=_share, default=1.0, help="share of the full sizes, for a quicker look: 0.1")
    parser.add_argument("--quick", action="store_true", help="one round of tiny sizes: a smoke test, no figures")
    parser.add_argument("--ratios", action="store_true", help="print the targets alone, most of them ratios")
    parser.add_argument("--json", type=Path, help="the file that takes the raw numbers")
    parser.add_argument("--write", action="store_true", help="put tables and plots into docs/performance.md")
    parser.add_argument(
        "--from", type=Path, dest="source", metavar="FILE", help="measure nothing, read a file of --json"
    )
    return parser


def _names(text: str) -> list[str]:
    names = text.split(",")
    known = {*measurements.ALL, *measurements.OTHERS}
    if unknown := set(names) - known:
        raise argparse.ArgumentTypeError(
            f"no measurement {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}"
        )
    return names


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError("above 0, at most 1")
    return number


def _say(text: str) -> None:
    print(f"[{datetime.now(UTC):%H:%M:%S}] {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
