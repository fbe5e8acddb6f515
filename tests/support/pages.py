"""Tables in Markdown, and pages of the documentation of which a command writes a part, between two markers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

_SHOWN = 5


class Finding(Protocol):
    """Something that is wrong."""

    @property
    def column(self) -> str:
        """The column of a table in which it is counted."""
        ...

    @property
    def what(self) -> str:
        """The evidence in words."""
        ...


def parts(text: str, name: str) -> tuple[str, str, str]:
    """Return what is before, between and after `<!-- name -->` and `<!-- /name -->`, the markers not included.

    Raises `ValueError` if one of them is missing.
    """
    begin, end = _markers(name)
    before, found, rest = text.partition(begin)
    written, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"no markers {begin} and {end}")
    return before, written, after


def replaced(text: str, name: str, part: str) -> str:
    """Return `text` with `part` between the markers. Raises `ValueError` if one of them is missing."""
    before, _, after = parts(text, name)
    begin, end = _markers(name)
    return f"{before}{begin}\n\n{part.strip()}\n\n{end}{after}"


def write(page: Path, name: str, part: str) -> None:
    """Put `part` between the markers of a page. Raises `ValueError` if one of them is missing."""
    page.write_text(replaced(page.read_text(), name, part))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def first_of_each(findings: Iterable[Finding]) -> str:
    """Return the first findings of each column, one per line, and how many more there are."""
    by_column: dict[str, list[str]] = {}
    for finding in findings:
        by_column.setdefault(finding.column, []).append(finding.what)
    lines = []
    for column, found in by_column.items():
        lines += [f"{column}: {what}" for what in found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f"{column}: and {len(found) - _SHOWN} more")
    return "\n".join(lines)


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name} -->", f"<!-- /{name} -->"
