"""How the demo opens a browser, and how commands are written that another shell finds."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.processes.processes import ROOT, until
from tests.support.processes.terminal import Terminal

_URL = "http://127.0.0.1:1/"
_OPEN = f"from orcheo_dispatch.ops.demo.next_steps import open_browser; print('opened:', open_browser({_URL!r}))"
_TYPED = "import sys; from orcheo_dispatch.ops.help.command_line import typed; print(typed())"


@pytest.fixture
def browser(tmp_path: Path) -> Path:
    """A program that notes the page that it is to show."""
    program = tmp_path / "browser"
    program.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/shown.new\nmv {tmp_path}/shown.new {tmp_path}/shown\n')
    program.chmod(0o755)
    return program


def _environment(browser: Path, **variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in {"CI", "DISPLAY", "WAYLAND_DISPLAY"}}
    return {**kept, "BROWSER": str(browser), **variables}


def test_browser_is_opened_on_a_terminal_with_a_display(browser: Path) -> None:
    with Terminal(sys.executable, "-c", _OPEN, environment=_environment(browser, DISPLAY=":9")) as terminal:
        assert terminal.exit_code() == 0
        assert "opened: True" in terminal.shown
    until(lambda: browser.with_name("shown").exists(), what="the page in the browser")
    assert browser.with_name("shown").read_text() == f"{_URL}\n"


@pytest.mark.parametrize("variables", [{}, {"DISPLAY": ":9", "CI": "true"}, {"WAYLAND_DISPLAY": "w", "CI": "1"}])
def test_browser_is_not_opened_without_a_display_or_in_ci(browser: Path, variables: Mapping[str, str]) -> None:
    with Terminal(sys.executable, "-c", _OPEN, environment=_environment(browser, **variables)) as terminal:
        assert terminal.exit_code() == 0
        assert "opened: False" in terminal.shown
    assert not browser.with_name("shown").exists()


def test_browser_is_not_opened_without_a_terminal(browser: Path) -> None:
    environment = _environment(browser, DISPLAY=":9")
    shown = subprocess.run(
        [sys.executable, "-c", _OPEN], env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert "opened: False" in shown.stdout
    assert not browser.with_name("shown").exists()


def test_command_is_written_so_that_another_shell_finds_it(tmp_path: Path) -> None:
    """Of an environment in a folder with a blank in its name, which is on no path."""
    folder = tmp_path / "my tools" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").symlink_to(sys.executable)
    (folder / "orcheo-dispatch").write_text("#!/bin/sh\necho found\n")
    (folder / "orcheo-dispatch").chmod(0o755)
    program = f"import sys; sys.path[:0] = {sys.path!r}; sys.executable = {str(folder / 'python')!r}; {_TYPED}"
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()
    assert shlex.split(shown) == [str(folder / "orcheo-dispatch")]
    done = subprocess.run(
        ["/bin/sh", "-c", shown], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "found\n"


def test_command_without_a_file_is_the_module(tmp_path: Path) -> None:
    program = f"import sys; sys.executable = {str(tmp_path / 'python')!r}; {_TYPED}"
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()
    assert shown == f"{tmp_path}/python -m orcheo_dispatch.ops.cli"
