"""The curves of a soak as one PNG, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.soak.curves import Curve

_COLUMNS = 3
_STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4"}


def draw(curves: Mapping[str, Curve], warm_up: float, path: Path) -> None:
    """Draw each curve in a panel of its own from 0 up, over minutes; the warm-up is grey."""
    rows = -(-len(curves) // _COLUMNS)
    with mpl.rc_context({**_STYLE, "font.size": 8}):
        figure = Figure(figsize=(10, 1.7 * rows), layout="constrained")
        for number, curve in enumerate(curves.values(), 1):
            axes = figure.add_subplot(rows, _COLUMNS, number)
            axes.plot([at / 60 for at, _ in curve.points], [value for _, value in curve.points], color="#0b6e99")
            axes.axvspan(0, warm_up / 60, color="#eeeeee", zorder=0)
            axes.set_ylim(bottom=0)
            axes.set_title(f"{curve.name}, {curve.bound.unit}".rstrip(", "), loc="left", fontsize=8)
        figure.savefig(path, dpi=110, metadata={"Software": None})
