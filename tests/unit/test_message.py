"""What a message may say."""

from __future__ import annotations

from typing import Any

import pytest

from shared.broker import claim_of, task_name
from shared.ledger import Claim
from worker.message import read_claim


def test_claim_is_read() -> None:
    assert read_claim(("r1", 7), {}) == Claim("r1", 7)


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("r1",),
        ("r1", 1, 2),
        ("r1", "1"),
        ("r1", 1.0),
        ("r1", True),
        ("r1", 0),
        ("", 1),
        ("a\x00", 1),
        (1, 1),
        (None, 1),
    ],
)
def test_anything_else_is_refused(args: tuple[Any, ...]) -> None:
    assert read_claim(args, {}) is None


def test_keywords_are_refused() -> None:
    assert read_claim(("r1", 1), {"payload": "x"}) is None


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b'{"headers": 3}', b'{"headers": {"task": 3}}', b"\xff\xfe"])
def test_raw_message_that_is_no_task_has_no_name(raw: bytes) -> None:
    assert task_name(raw) is None
    assert claim_of(raw) is None
