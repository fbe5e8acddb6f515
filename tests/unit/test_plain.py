"""What clients write is shown harmlessly, by each view, and by each that is added."""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from rich.console import RenderableType
from rich.text import Text

from orcheo_dispatch.ops import screen
from orcheo_dispatch.ops.host.findings import Finding, Grade
from orcheo_dispatch.ops.runs.list import RunRow
from orcheo_dispatch.ops.runs.story import Story
from orcheo_dispatch.ops.runs.unclaimed import Unclaimed
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger.status import Status
from orcheo_dispatch.shared.text.plain import is_plain, plain, plain_lines, say
from tests.support.hostile import HOSTILE, does_harm

ROOT = Path(__file__).parents[2]


@effort(deadline=None)
@given(text=st.text(st.characters()) | st.sampled_from(HOSTILE), limit=st.none() | st.integers(0, 50))
def test_plain_is_one_line_that_nothing_obeys(text: str, limit: int | None) -> None:
    shown = plain(text, limit)
    assert "\n" not in shown
    assert does_harm(shown) == []
    shown.encode()
    assert plain(shown) == shown
    if limit is not None and len(text) > limit:
        assert shown == plain(text[:limit]) + " ..."


@pytest.mark.parametrize(
    "text",
    ["", "Invoice intake", "Über-Lauf, größer", "請求書", "فاتورة", "e\u0301te\u0301", "a\\b [x] <y> 100 %", "👍"],
)
def test_plain_leaves_names_of_people_and_things_as_they_are(text: str) -> None:
    assert plain(text) == text
    assert is_plain(text)


def test_plain_shows_what_it_does_not_print() -> None:
    assert plain("a\x1b[2J\n\t\u202e\U000e0041") == r"a\u001b[2J\n\t\u202e\U000e0041"
    assert plain_lines("one\x1b\r\ntwo\x85three\n") == "one\\u001b\ntwo\\u0085three\n"


def test_say_prints_lines_that_nothing_obeys() -> None:
    stream = io.StringIO()
    say("\n".join(HOSTILE), to=stream)
    assert does_harm(stream.getvalue()) == []


def _made(kind: Any, text: str) -> Any:
    """Return a value of this type in which each text is `text`."""
    if get_origin(kind) in {list, tuple}:
        return [_made(get_args(kind)[0], text)] * 2
    if get_origin(kind) is dict:
        return {text: _made(get_args(kind)[1], text), "failed": _made(get_args(kind)[1], text)}
    if isinstance(kind, UnionType):
        return _made(next(each for each in get_args(kind) if each is not type(None)), text)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{field.name: _made(hints[field.name], text) for field in fields(kind)})  # type: ignore[operator]
    if isinstance(kind, type) and issubclass(kind, Grade):
        return kind.WARN
    values: dict[Any, Any] = {str: text, int: 3, float: 2.5, bool: False, datetime: datetime(2026, 1, 1, tzinfo=UTC)}
    return values.get(kind, text)


_VIEWS: dict[str, Callable[[str], RenderableType]] = {
    "status_view": lambda text: screen.status_view(_made(Status, text)),
    "runs_view": lambda text: screen.runs_view([_made(RunRow, text)] * 2),
    "unclaimed_view": lambda text: screen.unclaimed_view([_made(Unclaimed, text)] * 2),
    "away_view": lambda text: screen.away_view(DatabaseError(text)),
    "looked_view": lambda _: screen.looked_view(2.0),
    "story_view": lambda text: screen.story_view(_made(Story, text)),
    "findings_view": lambda text: screen.findings_view([_made(Finding, text)] * 2),
}


def test_each_view_is_tried() -> None:
    """A new view belongs into the table above."""
    assert {name for name, _ in inspect.getmembers(screen, inspect.isfunction) if name.endswith("_view")} == {
        *_VIEWS,
        # Parts of status_view, made of numbers alone.
        "_beat_view",
        "_elsewhere_view",
    }


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("view", _VIEWS)
@pytest.mark.parametrize("terminal", [True, False])
def test_view_shows_each_text_harmlessly(view: str, text: str, terminal: bool) -> None:
    written, sober = io.StringIO(), io.StringIO()
    for stream, shown in ((written, text), (sober, "word")):
        console = screen.PlainConsole(
            file=stream, width=300, force_terminal=terminal, emoji=False, markup=False, highlight=False
        )
        console.print(_VIEWS[view](shown))
    # What colours the words of a sober text is our own.
    own = set(re.findall(r"\x1b\[[0-9;]*m", sober.getvalue())) | {"\x1b[0m"}
    left = written.getvalue()
    for sequence in own if terminal else ():
        left = left.replace(sequence, "")
    assert does_harm(left) == []
    left.encode()


def test_markup_means_nothing_and_is_shown_as_it_stands() -> None:
    stream = io.StringIO()
    screen.PlainConsole(file=stream, width=300, markup=False).print(_VIEWS["findings_view"]("[bold]a[/] :skull: [/x]"))
    assert stream.getvalue().count("[bold]a[/] :skull: [/x]") == 6


def test_text_that_somebody_made_of_what_a_client_wrote_is_shown_harmlessly_too() -> None:
    stream = io.StringIO()
    screen.PlainConsole(file=stream, width=300).print(Text("a\x1b[2J\u202eb"))
    assert stream.getvalue() == "a\ufffd[2J\ufffdb\n"


@pytest.mark.parametrize("text", HOSTILE)
def test_json_is_data_and_ascii(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    screen.print_json({"x": text})
    screen.print_json_line({"x": text})
    written = capsys.readouterr().out
    assert written.isascii()
    assert does_harm(written) == []
    assert json.loads(written.splitlines()[-1]) == {"x": text}


# Files of ours, which are printed to be written somewhere, and lines that are JSON.
_EXACT = {
    ("ops/cli.py", "man"),
    ("ops/cli.py", "roles"),
    ("ops/cli.py", "schema"),
    ("ops/commands/host.py", "units"),
    ("ops/screen.py", "print_json"),
}
_EXACT |= {("ops/screen.py", "print_json_line"), ("shared/text/plain.py", "say")}


def test_nothing_is_printed_past_the_one_place_that_makes_it_harmless() -> None:
    """Where this is red: print by `shared/text/plain.py`, `say`, or show a view by `ops/screen.py`, `console`."""
    found = {(str(path.relative_to(ROOT)), name) for path in _modules() for name in _printing(path)}
    assert found - _EXACT == set()


def _modules() -> Iterator[Path]:
    for folder in ("ops", "shared", "dispatcher", "worker"):
        for path in (ROOT / folder).rglob("*.py"):
            # Tools of the demo and of tests: what they print, they have made.
            if not {"demo", "sandbox"} & set(path.relative_to(ROOT).parts):
                yield path


def _printing(path: Path) -> Iterator[str]:
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in {"print", "typer.echo", "click.echo", "sys.stdout.write", "sys.stderr.write", "Console"}:
                yield function.name
