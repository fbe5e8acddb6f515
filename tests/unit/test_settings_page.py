"""The table of settings in docs/settings.md says what the settings say."""

from __future__ import annotations

import re
from pathlib import Path

from orcheo_dispatch.shared.settings.model import variables

_PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
_TABLE = re.compile(r"<!-- settings -->\n(?P<table>.*?)\n<!-- /settings -->", re.DOTALL)
_NAME = re.compile(r"`(?P<name>[A-Z_]+)`")


def test_settings_page_lists_every_setting_with_its_default() -> None:
    documented = {name: default for name, default, _, _ in _rows()}
    defaults = {name: default for name, (default, _) in variables().items()}
    assert documented == defaults


def test_settings_page_lists_each_setting_once_in_order() -> None:
    assert [name for name, *_ in _rows()] == list(variables())


def test_settings_page_gives_every_setting_a_unit_and_a_meaning() -> None:
    assert [name for name, _, unit, meaning in _rows() if not unit or not meaning] == []


def _rows() -> list[tuple[str, str, str, str]]:
    """Return the rows of the table: name, default, unit, meaning."""
    found = _TABLE.search(_PAGE.read_text(encoding="utf-8"))
    assert found is not None, "docs/settings.md has no table between <!-- settings --> and <!-- /settings -->"
    header, rule, *lines = found["table"].splitlines()
    assert _cells(header) == ["variable", "default", "unit", "meaning"]
    assert set(rule) <= set("|- ")
    rows = []
    for line in lines:
        variable, default, unit, meaning = _cells(line)
        name = _NAME.fullmatch(variable)
        assert name is not None, f"not a variable: {line}"
        rows.append((name["name"], default, unit, meaning))
    return rows


def _cells(line: str) -> list[str]:
    assert line.startswith("|"), f"not a row: {line}"
    assert line.endswith("|"), f"not a row: {line}"
    return [cell.strip() for cell in line[1:-1].split("|")]
