"""How many examples each test tries, and the values that they are made of.

`make test` tries 50 each, always the same; `make fuzz EXAMPLES=10000` tries that many, others each time, and keeps what
failed in .hypothesis.
"""

from __future__ import annotations

import json
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("TEST_FUZZ_EXAMPLES", "50"))
_SHORT = EXAMPLES <= 50
SECRET = "hunter2-correct-horse-battery"


def _settings(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=_SHORT,
        # Fixtures are servers, which each example finds as the last one left them.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


fuzzed = _settings(EXAMPLES)
fuzzed_by_process = _settings(max(3, EXAMPLES // 100))
"""For a test that starts a process per example, which takes a second."""

texts = st.text(st.characters(exclude_categories=())) | st.sampled_from(
    ["", "\x00", "a\x00b", "\ud800", "x\udfff", "\x1b[31m", "\u202e", "\n", "1e999", "NaN", "9" * 5000, "-1", "x" * 300]
)
"""Any text, with lone surrogates, which JSON can express and UTF-8 cannot."""
numbers = st.integers() | st.floats() | st.sampled_from([2**31, 2**63 - 1, 2**63, -(2**63), 10**400])
leaves = st.none() | st.booleans() | numbers | texts
values = st.recursive(leaves, lambda each: st.lists(each, max_size=5) | st.dictionaries(texts, each, max_size=5))
deep = st.integers(500, 7_000).map(lambda depth: b"[" * depth + b"]" * depth)
"""JSON that is nested more deeply than Python's reader can follow."""
broken = st.binary(max_size=500) | deep | st.sampled_from([b"\xff\xfe", b"null", b"{", b'{"a":1e999}', b"9" * 5000])


@st.composite
def changed(draw: st.DrawFn, sound: Any) -> Any:
    """Return a JSON value with one part of it replaced, removed or added to, at any depth."""
    if draw(st.integers(0, 3)) == 0 or not isinstance(sound, dict | list) or not sound:
        return draw(values)
    if isinstance(sound, dict):
        key = draw(st.sampled_from(sorted(sound)))
        rest = {name: value for name, value in sound.items() if name != key}
        match draw(st.integers(0, 5)):
            case 0:
                return rest
            case 1:
                return {**sound, draw(texts): draw(values)}
        return {**rest, key: draw(changed(sound[key]))}
    at = draw(st.integers(0, len(sound) - 1))
    if draw(st.integers(0, 5)) == 0:
        return sound[:at] + sound[at + 1 :]
    return [*sound[:at], draw(changed(sound[at])), *sound[at + 1 :]]


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """Return these bytes with a few of them changed, removed or repeated."""
    found = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        match draw(st.integers(0, 3)):
            case 0:
                found[at : at + draw(st.integers(1, 20))] = b""
            case 1:
                found[at:at] = draw(st.binary(min_size=1, max_size=8))
            case 2:
                found[at:at] = found[at : at + 20] * draw(st.integers(1, 50))
            case _:
                found[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
    return bytes(found)


def raw(sound: Any) -> st.SearchStrategy[bytes]:
    """Return JSON like this, JSON that differs in one part, this with bytes changed, and bytes that are nothing."""
    text = json.dumps(sound).encode()
    return st.just(text) | changed(sound).map(lambda each: json.dumps(each).encode()) | damaged(text) | broken


def check_line(text: str) -> None:
    """Check that an error is one line, without a secret and without what a terminal obeys."""
    assert text
    assert "\n" not in text
    assert SECRET not in text
    assert "Traceback" not in text
