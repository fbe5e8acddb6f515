"""Print the demo's own lines."""

from __future__ import annotations

from rich.text import Text

from orcheo_dispatch.ops import screen


def say(line: str) -> None:
    """Print one line, in which Rich's markup has its meaning."""
    screen.console.print(Text.from_markup(line))
