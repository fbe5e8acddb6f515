"""The manual page: whole, and without a line that groff or mandoc would warn of."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
import typer
from typer.core import TyperGroup

from orcheo_dispatch.ops.cli import app
from orcheo_dispatch.ops.help.examples import Commands, examples_of
from orcheo_dispatch.ops.help.man_page import man_page

_OVERSTRUCK = re.compile(r".\x08|\x1b\[[0-9;]*m")


def _tree(of: typer.Typer = app) -> TyperGroup:
    group = typer.main.get_command(of)
    assert isinstance(group, TyperGroup)
    return group


def _ran(program: str, *arguments: str, page: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed: apt-get install {program}")
    done = subprocess.run([path, *arguments], input=page, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr or done.stdout
    assert done.stderr == ""
    return _OVERSTRUCK.sub("", done.stdout)


def test_command_prints_the_page() -> None:
    command = [sys.executable, "-m", "orcheo_dispatch.ops.cli", "man"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert shown == man_page(_tree())


def test_groff_shows_every_command_option_and_example() -> None:
    group = _tree()
    shown = _ran("groff", "-man", "-Tascii", "-ww", "-P-cbou", "-rLL=400n", page=man_page(group))
    lines = [line.strip() for line in shown.splitlines()]
    for name, command in group.commands.items():
        assert name in lines
        assert any(line.startswith(f"orcheo-dispatch {name}") for line in lines)
        options = [option for each in command.params if each.param_type_name == "option" for option in each.opts]
        assert [option for option in options if option not in shown] == []
        assert [line for line in examples_of(command) if line not in lines] == []  # type: ignore[arg-type]


def test_mandoc_has_nothing_to_say_about_the_page() -> None:
    # Long lines are a matter of style: a paragraph is one line here.
    # The page has no date, so that it is the same wherever it is printed.
    page = man_page(_tree()).replace('1 ""', '1 "November 23, 2026"', 1)
    assert _ran("mandoc", "-Tlint", "-Wwarning", page=page) == ""


def test_text_that_looks_like_a_request_is_shown_as_it_is() -> None:
    other = typer.Typer(cls=Commands, help=".so /etc/passwd")

    @other.command()
    def odd(path: str = typer.Option("", help=".de of C:\\new 'quoted' ~/x^2 `y`")) -> None:
        r"""'br is no request, \n is no escape."""

    @other.command()
    def even() -> None:
        """Do nothing."""

    shown = _ran("groff", "-man", "-Tascii", "-ww", "-P-cbou", "-rLL=400n", page=man_page(_tree(other)))
    for text in (".so /etc/passwd", ".de of C:\\new 'quoted' ~/x^2 `y`", "'br is no request, \\n is no escape."):
        assert text in shown
