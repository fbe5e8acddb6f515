"""Two tests that look at the text of a statement: at its layout, and at what it says. Collected only when named."""

from __future__ import annotations

from orcheo_dispatch.shared.ledger.statements.publish import LAPSED


def test_layout() -> None:
    assert LAPSED.text.startswith("\n")


def test_meaning() -> None:
    assert "lease_expires_at < now()" in LAPSED.text
