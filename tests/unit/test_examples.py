"""The help of each command ends with examples, and each of them is a command line that the command accepts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest
import typer
from typer.core import TyperCommand, TyperGroup

from orcheo_dispatch.ops.cli import app
from orcheo_dispatch.ops.help.examples import Commands, every, examples_of

_VARIABLE = re.compile(r"[A-Z_]+=\S*")
_ENDS = frozenset("|&;<>")


def _tree() -> TyperGroup:
    group = typer.main.get_command(app)
    assert isinstance(group, Commands)
    return group


def _commands(command: TyperCommand | TyperGroup, *path: str) -> Iterator[tuple[str, TyperCommand | TyperGroup]]:
    yield " ".join(path), command
    if isinstance(command, TyperGroup):
        for name, each in command.commands.items():
            assert isinstance(each, TyperCommand | TyperGroup)
            yield from _commands(each, *path, name)


_COMMANDS = dict(_commands(_tree(), "orcheo-dispatch"))


def _arguments(line: str) -> list[str]:
    """Return the words of an example up to a comment, a pipe or a redirection, without variables before the command."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    while words and _VARIABLE.fullmatch(words[0]):
        words.pop(0)
    end = next((at for at, word in enumerate(words) if set(word) <= _ENDS), len(words))
    return words[:end]


def _parse(line: str) -> str:
    """Parse an example as the command does, without executing it; return the full name of the command."""
    name, *arguments = _arguments(line)
    command: TyperCommand | TyperGroup = _tree()
    path = [name]
    parent = None
    while True:
        context = command.make_context(path[-1], list(arguments), parent=parent)
        if not isinstance(command, TyperGroup):
            return " ".join(path)
        arguments = [*context._protected_args, *context.args]
        found, below, arguments = command.resolve_command(context, arguments)
        assert found is not None
        assert isinstance(below, TyperCommand | TyperGroup)
        path.append(found)
        command, parent = below, context


@pytest.mark.parametrize("name", _COMMANDS)
def test_each_command_has_an_example_that_it_accepts(name: str) -> None:
    command = _COMMANDS[name]
    examples = examples_of(command)
    assert examples, (
        f"'{name}' has no example: end its docstring with a section 'Examples:', "
        f"one line per example, such as '  {name} ...', indented by two spaces"
    )
    for line in examples:
        parsed = _parse(line)
        assert f"{parsed} ".startswith(f"{name} "), f"{line!r} is an example of {parsed!r}, not {name!r}"


@pytest.mark.parametrize("name", _COMMANDS)
def test_help_of_each_command_ends_with_its_examples(name: str) -> None:
    command = _COMMANDS[name]
    context = typer.Context(command, info_name=name)
    shown = command.get_help(context).splitlines()
    examples = examples_of(command)
    assert [line.strip() for line in shown[-len(examples) :]] == examples
    assert shown[-len(examples) - 1].strip() == "Examples:"


@pytest.mark.parametrize(
    "line",
    [
        "orcheo-dispatch runs --no-such-option",
        "orcheo-dispatch no-such-command",
        "orcheo-dispatch runs --limit many",
        "orcheo-dispatch fail 3f2b8c1e",
    ],
)
def test_example_that_the_command_refuses_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|valid integer|missing"):
        _parse(line)


def test_command_without_an_example_is_found() -> None:
    other = typer.Typer(cls=Commands)

    @other.command()
    def with_one() -> None:
        """Do this.

        Examples:
          orcheo-dispatch with-one
        """

    @other.command()
    def without() -> None:
        """Do that."""

    found = {command.name: examples_of(command) for command in every(typer.main.get_command(other))}  # type: ignore[arg-type]
    assert found["with-one"] == ["orcheo-dispatch with-one"]
    assert found["without"] == []
