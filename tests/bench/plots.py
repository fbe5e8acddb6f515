"""The plots: one PNG a curve, drawn without a display."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from tests.bench.result import Curve, Measurement, Series

_COLOURS = ("#0b6e99", "#d9730d", "#6940a5", "#2e8b57", "#ad1a72", "#787774")
_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "font.size": 10,
    "legend.frameon": False,
}
_DOTS_PER_INCH = 110
_PLAIN = FuncFormatter(lambda value, _: f"{value:,.10g}")


def draw(measurement: Measurement, curve: Curve, path: Path) -> None:
    """Draw a curve with the medians, and the least and most of the rounds as a band or a whisker."""
    wanted = _of(measurement, curve, curve.metric)
    if not wanted:
        raise ValueError(f"{measurement.name} has no series for the curve {curve.name}")
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.add_subplot()
        if any(each.at is not None for each in wanted):
            _lines(axes, wanted, curve)
        elif curve.parts:
            _stacks(axes, wanted, {part: _of(measurement, curve, part) for part in curve.parts})
            figure.legend(loc="outside lower right", ncols=len(curve.parts))
        else:
            _bars(axes, wanted)
        # Above all of the figure: beside long names of systems the axes are too narrow for it.
        figure.suptitle(curve.title, x=0.01, ha="left", fontsize=11)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=_DOTS_PER_INCH, metadata={"Software": None})


def _of(measurement: Measurement, curve: Curve, metric: str) -> list[Series]:
    return [
        each
        for each in measurement.series
        if each.metric == metric and (not curve.systems or each.system in curve.systems)
    ]


def _lines(axes: Axes, wanted: list[Series], curve: Curve) -> None:
    systems = dict.fromkeys(each.system for each in wanted)
    for system, colour in zip(systems, itertools.cycle(_COLOURS), strict=False):
        points = sorted(
            ((each.at, each.spread) for each in wanted if each.system == system and each.at is not None),
            key=lambda point: point[0],
        )
        places = [at for at, _ in points]
        axes.plot(places, [spread.median for _, spread in points], marker="o", markersize=4, color=colour, label=system)
        axes.fill_between(
            places,
            [spread.least for _, spread in points],
            [spread.most for _, spread in points],
            color=colour,
            alpha=0.15,
        )
    axes.set_xlabel(curve.x_label)
    axes.set_ylabel(f"{curve.metric}, {wanted[0].unit}")
    axes.set_xscale("log" if curve.log_x else "linear")
    axes.set_yscale("log" if curve.log_y else "linear")
    if not curve.log_y:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(_PLAIN)
    axes.legend()


def _bars(axes: Axes, wanted: list[Series]) -> None:
    names = [each.system for each in wanted]
    medians = [each.spread.median for each in wanted]
    below = [each.spread.median - each.spread.least for each in wanted]
    above = [each.spread.most - each.spread.median for each in wanted]
    colours = [_COLOURS[0] if name.startswith("orcheo-dispatch") else _COLOURS[-1] for name in names]
    axes.barh(names, medians, xerr=[below, above], color=colours, height=0.6, error_kw={"elinewidth": 1, "capsize": 3})
    for row, median in enumerate(medians):
        _label(axes, row, median + above[row], median)
    _finish_bars(axes, wanted)


def _stacks(axes: Axes, wanted: list[Series], parts: dict[str, list[Series]]) -> None:
    names = [each.system for each in wanted]
    ends = dict.fromkeys(names, 0.0)
    for (part, found), colour in zip(parts.items(), itertools.cycle(_COLOURS), strict=False):
        widths = {each.system: each.spread.median for each in found}
        row = [widths.get(name, 0.0) for name in names]
        label = part.rpartition(", ")[2]
        axes.barh(names, row, left=list(ends.values()), color=colour, height=0.6, label=label)
        ends = {name: end + width for (name, end), width in zip(ends.items(), row, strict=True)}
    for number, each in enumerate(wanted):
        _label(axes, number, ends[each.system], each.spread.median)
    _finish_bars(axes, wanted)


def _label(axes: Axes, row: int, end: float, value: float) -> None:
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    axes.annotate(text, (end, row), va="center", textcoords="offset points", xytext=(4, 0))


def _finish_bars(axes: Axes, wanted: list[Series]) -> None:
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    axes.set_xlabel(f"{wanted[0].metric}, {wanted[0].unit}")
    axes.xaxis.set_major_formatter(_PLAIN)
