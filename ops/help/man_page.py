"""Make the manual page of the tree of commands, in the macros of man(7) that groff and mandoc read.

Not by click-man: it makes a page per command, and reads click's classes, of which Typer has its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import typer
from typer.core import TyperCommand, TyperGroup

from orcheo_dispatch import __version__
from orcheo_dispatch.ops.help.command_line import NAME
from orcheo_dispatch.ops.help.examples import examples_of
from orcheo_dispatch.shared import errors

SECTION = 1
_ABOUT = "execute the pending runs of Orcheo"


def man_page(group: TyperGroup) -> str:
    """Return the page of all commands: name, synopsis, options, a subsection per command, exit codes, examples."""
    lines = [
        rf'.TH {_word(NAME.upper())} {SECTION} "" "{_text(f"{NAME} {__version__}")}" "User Commands"',
        ".SH NAME",
        rf"{_text(NAME)} \- {_text(_ABOUT)}",
        ".SH SYNOPSIS",
        rf".B {_text(NAME)}",
        r"[\fIOPTIONS\fR] \fICOMMAND\fR [\fIARGUMENTS\fR]",
        ".SH DESCRIPTION",
        *_paragraphs(group.help or ""),
        ".SH OPTIONS",
        *_options(group, typer.Context(group, info_name=NAME)),
        ".SH COMMANDS",
        *_commands(group, [NAME]),
        ".SH ENVIRONMENT",
        *_paragraphs(f"'{NAME} units orcheo.env' prints every variable, its default and what it means."),
        ".SH EXIT STATUS",
        *_exit_codes(),
        *_examples(group, ".SH EXAMPLES"),
        ".SH SEE ALSO",
        r"\fBsystemctl\fR(1), \fBpsql\fR(1)",
    ]
    return "\n".join(lines) + "\n"


def _commands(group: TyperGroup, path: Sequence[str]) -> Iterator[str]:
    for name, command in group.commands.items():
        assert isinstance(command, TyperCommand | TyperGroup)
        full = [*path, name]
        context = typer.Context(command, info_name=name)
        if command.hidden:
            continue
        yield f".SS {_quoted(' '.join(full[1:]))}"
        pieces = " ".join(command.collect_usage_pieces(context))
        yield rf"\fB{_text(' '.join(full))}\fR {_text(pieces)}"
        yield from (".PP", *_paragraphs(command.help or ""))
        yield from _options(command, context)
        yield from _examples(command, None)
        if isinstance(command, TyperGroup):
            yield from _commands(command, full)


def _options(command: TyperCommand | TyperGroup, context: typer.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        if (record := parameter.get_help_record(context)) is not None:
            yield from (".TP", rf"\fB{_text(record[0])}\fR", _line(record[1]) or r"\&")


def _examples(command: TyperCommand | TyperGroup, heading: str | None) -> Iterator[str]:
    if examples := examples_of(command):
        yield from (heading,) if heading else (".PP", "Examples:", ".PP")
        yield from (".RS 4", ".nf", *(_line(example) for example in examples), ".fi", ".RE")


def _exit_codes() -> Iterator[str]:
    kinds: list[type[errors.DispatchError]] = [
        errors.DispatchError,
        errors.SettingsError,
        errors.DatabaseError,
        errors.BrokerError,
    ]
    codes = {
        0: "Done.",
        **{kind.exit_code: (kind.__doc__ or "").splitlines()[0] for kind in kinds},
        130: "Interrupted.",
    }
    for code, meaning in codes.items():
        yield from (".TP", rf"\fB{code}\fR", _line(meaning))


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.replace("\b\n", "").strip())):
        yield from (".PP",) if number else ()
        yield _line(" ".join(paragraph.split()))


def _line(text: str) -> str:
    """Return text as a line of its own: one that begins with a full stop or an apostrophe would be a request."""
    escaped = _text(text)
    return rf"\&{escaped}" if escaped.startswith((".", "\\(aq")) else escaped


def _text(text: str) -> str:
    """Return text so that it is shown as it is: backslashes, and the hyphens and quotes of options and commands."""
    escaped = text.replace("\\", r"\e")
    for character, name in (("-", r"\-"), ("'", r"\(aq"), ("`", r"\(ga"), ("^", r"\(ha"), ("~", r"\(ti")):
        escaped = escaped.replace(character, name)
    return escaped


def _word(text: str) -> str:
    return text.replace("-", r"\-")


def _quoted(text: str) -> str:
    return f'"{_text(text)}"'
