"""The report: a summary for the terminal, tables and plots for `docs/performance.md`."""

from __future__ import annotations

from pathlib import Path

from tests.bench.result import Measurement, Report, Series, Target
from tests.bench.setting import ROOT
from tests.support.pages import replaced

PAGE = ROOT / "docs" / "performance.md"
IMAGES = ROOT / "docs" / "images"


def summary(report: Report) -> str:
    """Return all that was found as text, the targets last."""
    lines = []
    for measurement in report.measurements:
        lines += ["", f"{measurement.name}: {measurement.title} ({measurement.seconds:.0f} s)"]
        for each in measurement.series:
            at = "" if each.at is None else f" at {each.at:g}"
            spread = each.spread
            lines.append(
                f"  {each.system + at:34} {each.metric:34} {_number(spread.median):>9} {each.unit:10}"
                f" ({_number(spread.least)} to {_number(spread.most)})"
            )
        lines += [f"  {note}" for note in measurement.notes]
    return "\n".join([*lines, "", targets(report)])


def targets(report: Report) -> str:
    """Return each target with what was found, most of them ratios of values of one round, as text."""
    lines = ["targets"]
    for measurement in report.measurements:
        lines += [f"  {measurement.name}: {target.text}: {_verdict(target)}" for target in measurement.targets]
    return "\n".join(lines)


def write(report: Report) -> None:
    """Put the tables into the page of the documentation, and draw the plots beside it."""
    from tests.bench import plots  # matplotlib is there in the environment of the benchmark alone

    PAGE.write_text(page(PAGE.read_text(), report))
    for measurement in report.measurements:
        for curve in measurement.curves:
            plots.draw(measurement, curve, image_of(curve.name))


def page(text: str, report: Report) -> str:
    """Return `text` with the tables between its markers. Raises `ValueError` where it has none."""
    return replaced(text, "bench", "\n".join([_where(report), _targets(report), *map(_section, report.measurements)]))


def image_of(name: str) -> Path:
    """Return the file of a plot."""
    return IMAGES / f"bench-{name}.png"


def _where(report: Report) -> str:
    facts = {**report.machine, **report.versions}
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"Taken at {report.taken_at}.\n\n| what | value |\n|---|---|\n{rows}\n"


def _targets(report: Report) -> str:
    rows = [
        f"| {measurement.name} | {target.text} | {_spread_of(target)} | {_verdict_in_table(target)} |"
        for measurement in report.measurements
        for target in measurement.targets
    ]
    head = "### Targets\n\n| measurement | target | found | verdict |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


def _section(measurement: Measurement) -> str:
    parts = [f"### {measurement.title}\n", _table(measurement)]
    parts += [f"\n{note}" for note in measurement.notes]
    parts += [f"\n![{curve.title}](images/{image_of(curve.name).name})" for curve in measurement.curves]
    return "\n".join(parts) + "\n"


def _table(measurement: Measurement) -> str:
    """Return a row a system, a column a metric."""
    columns = list(dict.fromkeys((each.metric, each.unit) for each in measurement.series))
    cells: dict[str, dict[tuple[str, str], str]] = {}
    for each in measurement.series:
        cells.setdefault(_place(each), {})[each.metric, each.unit] = _cell(each)
    heads = [f"{metric}, {unit}" if unit else metric for metric, unit in columns]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(row.get(column, '') for column in columns)} |" for name, row in cells.items()]
    return "\n".join(lines)


def _place(each: Series) -> str:
    return each.system if each.at is None else f"{each.system}, {_number(each.at)}"


def _cell(each: Series) -> str:
    spread = each.spread
    if len(each.values) == 1:
        return _number(spread.median)
    return f"{_number(spread.median)} ({_number(spread.least)} to {_number(spread.most)})"


def _verdict(target: Target) -> str:
    return f"{_spread_of(target)}, {_verdict_word(target)}"


def _spread_of(target: Target) -> str:
    found = target.found
    return f"{_number(found.median)} {target.unit} ({_number(found.least)} to {_number(found.most)})"


def _verdict_word(target: Target) -> str:
    return "met" if target.met else f"missed by {target.missed_by:.0%}"


def _verdict_in_table(target: Target) -> str:
    return "met" if target.met else f"**{_verdict_word(target)}**"


def _number(value: float) -> str:
    """Return three digits that mean something, without an exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
