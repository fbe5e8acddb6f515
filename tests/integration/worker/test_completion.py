"""Completion in a real bash, with the script that the command prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes.processes import ROOT

_COMMAND = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(ROOT)!r})
from orcheo_dispatch.ops.cli import main
main()
"""
# What bash does at a tab: the words so far go to the function that `complete` has named.
_TAB = """
eval "$(orcheo-dispatch --show-completion)"
function=$(complete -p orcheo-dispatch | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=(orcheo-dispatch "$@")
COMP_CWORD=$#
$function orcheo-dispatch
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with the installed command on its path."""
    command = tmp_path / "bin" / "orcheo-dispatch"
    command.parent.mkdir()
    command.write_text(_COMMAND)
    command.chmod(0o755)
    return tmp_path


def _bash(home: Path, script: str, *words: str) -> str:
    done = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", script, "bash", *words],
        env={"HOME": str(home), "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}", "SHELL": "/bin/bash"},
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["st"], ["status"]),
        (["ru"], ["run", "runs"]),
        (["runs", "--sta"], ["--status"]),
        (["runs", "--status", "su"], ["succeeded"]),
        (["runs", "--outcome", "t"], ["timed_out"]),
        (["status", "--w"], ["--watch"]),
    ],
)
def test_bash_completes_commands_options_and_values(home: Path, words: list[str], completed: list[str]) -> None:
    assert sorted(_bash(home, _TAB, *words).split()) == completed


def test_completion_is_installed_for_the_shell_that_asks(home: Path) -> None:
    # Not the last command: bash would become it, and nobody could tell any more which shell had asked.
    _bash(home, "orcheo-dispatch --install-completion && true")
    installed = home / ".bash_completions" / "orcheo-dispatch.sh"
    assert "complete -o default -F" in installed.read_text()
    assert str(installed) in (home / ".bashrc").read_text()
