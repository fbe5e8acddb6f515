"""How things look in a terminal."""

from __future__ import annotations

import pytest
from rich.console import Console

from ops.check import Finding, Grade
from ops.screen import findings_view, seconds


def test_square_brackets_of_a_finding_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    finding = Finding("Orcheo", Grade.WARN, "[not] here", "pip install 'orcheo-dispatch[orcheo]'")
    Console(width=160).print(findings_view([finding]))
    shown = capsys.readouterr().out
    assert "[not] here" in shown
    assert "'orcheo-dispatch[orcheo]'" in shown


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (0.0123, "12 ms"), (1.25, "1.2 s"), (61, "1 min 1 s"), (7320, "2 h 2 min")]
)
def test_seconds_are_shown_as_people_read_them(value: float | None, shown: str) -> None:
    assert seconds(value) == shown
