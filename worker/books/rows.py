"""Rows that a run leaves in the tables of traces and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Rows:
    """Rows by table, each a JSON object; in `contents`, in the same order, what JSON cannot hold."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    contents: dict[str, list[bytes | None]] = field(default_factory=dict)

    def add(self, table: str, row: str) -> None:
        """Add a row without bytes."""
        self.texts.setdefault(table, []).append(row)

    def add_bytes(self, table: str, row: str, content: bytes | None) -> None:
        """Add a row with bytes."""
        self.add(table, row)
        self.contents.setdefault(table, []).append(content)

    def extend(self, other: Rows) -> None:
        """Add all rows of `other`."""
        for table, rows in other.texts.items():
            self.texts.setdefault(table, []).extend(rows)
        for table, contents in other.contents.items():
            self.contents.setdefault(table, []).extend(contents)

    def size(self) -> int:
        """Return about how many bytes they are."""
        texts = sum(len(row) for rows in self.texts.values() for row in rows)
        return texts + sum(len(each or b"") for contents in self.contents.values() for each in contents)
