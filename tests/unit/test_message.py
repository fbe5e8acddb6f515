"""What a message may say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orcheo_dispatch.shared.broker.app import EXECUTE_RUN, claims_of, task_name
from orcheo_dispatch.shared.ledger.model import MAX_CLAIMS_PER_MESSAGE, Claim
from orcheo_dispatch.worker.messages.message import read_claims


def test_claims_are_read() -> None:
    assert read_claims(("r1", 7), {}) == [Claim("r1", 7)]
    assert read_claims(("r1", 7, "r2", 1, "r1", 7), {}) == [Claim("r1", 7), Claim("r2", 1)]


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
        ("a\ud800", 1),
        (1, 1),
        (None, 1),
        ("r1", 1, "r2", "2"),
        ("r1", 1) * (MAX_CLAIMS_PER_MESSAGE + 1),
    ],
)
def test_anything_else_is_refused(args: tuple[Any, ...]) -> None:
    assert read_claims(args, {}) == []


def test_keywords_are_refused() -> None:
    assert read_claims(("r1", 1), {"payload": "x"}) == []


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b'{"headers": 3}', b'{"headers": {"task": 3}}', b"\xff\xfe"])
def test_raw_message_that_is_no_task_has_no_name(raw: bytes) -> None:
    assert task_name(raw) is None
    assert claims_of(raw) == []


@pytest.mark.parametrize("claims", [["r1"], ["r1", "1"], [1, 1], [["r1", 1]], "r1", {"r1": 1}, 7, None, []])
def test_header_that_holds_no_claims_stands_for_none(claims: Any) -> None:
    assert claims_of(json.dumps({"headers": {"task": EXECUTE_RUN, "claims": claims}})) == []


@pytest.mark.parametrize("name", ["claims", "claim"])
def test_claims_are_read_from_header_also_as_releases_before_wrote_it(name: str) -> None:
    raw = json.dumps({"headers": {"task": EXECUTE_RUN, name: ["r1", 1]}})
    assert claims_of(raw) == [Claim("r1", 1)]
