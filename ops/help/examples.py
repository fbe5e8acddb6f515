"""Show the examples of each command at the end of its help.

A command's docstring ends with a section `Examples:`, a command line each, indented by two spaces. A line may go on
after the command: with a comment, a pipe or a redirection. `tests/unit/test_examples.py` parses each.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand, TyperGroup

_HEADING = "Examples:"
_AS_IT_IS = "\b\n"
"""In a help text, this line keeps the breaks of the paragraph below it."""


class Commands(TyperGroup):
    """A group that shows the examples of its commands below their options, where the end of a help text is."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for command in every(self):
            help_text, examples = _split(command.help or "")
            if examples:
                command.help = help_text
                command.epilog = f"{_AS_IT_IS}{_HEADING}\n" + "\n".join(f"  {line}" for line in examples)


def every(command: TyperCommand | TyperGroup) -> Iterator[TyperCommand | TyperGroup]:
    """Yield a command, and all below it."""
    yield command
    if isinstance(command, TyperGroup):
        for each in command.commands.values():
            assert isinstance(each, TyperCommand | TyperGroup)
            yield from every(each)


def examples_of(command: TyperCommand | TyperGroup) -> list[str]:
    """Return the examples of a command of a group `Commands`, a command line each; none if it has none."""
    return _split((command.epilog or "").removeprefix(_AS_IT_IS))[1]


def _split(text: str) -> tuple[str, list[str]]:
    """Return a text without its last section, and the lines of that, if it is the section of examples."""
    lines = inspect.cleandoc(text).splitlines()
    if _HEADING not in lines:
        return text, []
    at = lines.index(_HEADING)
    return "\n".join(lines[:at]).rstrip(), [line.strip() for line in lines[at + 1 :] if line.strip()]
