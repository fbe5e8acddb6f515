"""How things look in a terminal."""

from __future__ import annotations

import pytest

from orcheo_dispatch.ops.host.findings import Finding, Grade
from orcheo_dispatch.ops.screen import PlainConsole, findings_view


def test_square_brackets_of_a_finding_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    finding = Finding("Orcheo", Grade.WARN, "[not] here", "pip install 'orcheo-dispatch[orcheo]'")
    PlainConsole(width=160).print(findings_view([finding]))
    shown = capsys.readouterr().out
    assert "[not] here" in shown
    assert "'orcheo-dispatch[orcheo]'" in shown
