"""Completion at a tab, in real shells: commands, options and values, without libraries that take a second to import."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes.processes import ROOT

_BIN = Path(sys.executable).parent
_STATUSES = {"pending", "running", "succeeded", "failed", "cancelled"}
_CASES = [
    (("ru",), {"runs", "run"}),
    (("runs", "--sta"), {"--status"}),
    (("runs", "--status", ""), _STATUSES),
    (("runs", "--status", "s"), {"succeeded"}),
    (("check", "--for", ""), {"beat", "dispatcher", "worker"}),
]
# Typer itself imports pydantic to read arguments.
_HEAVY = {"sqlalchemy", "psycopg", "celery", "kombu", "redis", "alembic", "loguru", "prometheus_client"}
_BASH = """
set -u
source <(orcheo-dispatch --show-completion)
complete -p orcheo-dispatch | grep -q -- '-F _orcheo_dispatch_completion' || exit 9
COMP_WORDS=(orcheo-dispatch {words})
COMP_CWORD={last}
_orcheo_dispatch_completion orcheo-dispatch
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
# zsh calls the function while a line is edited; here it is called by itself, and what it passes on is printed.
_ZSH = """
compdef() {{ }}
_arguments() {{ print -rl -- "$@" }}
eval "$(orcheo-dispatch --show-completion)"
words=(orcheo-dispatch {words})
CURRENT={count}
_orcheo_dispatch_completion
"""


def _shell(name: str, *arguments: str, home: Path) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed: apt-get install {name}")
    environment = {**os.environ, "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}", "HOME": str(home)}
    environment |= {"XDG_CONFIG_HOME": str(home / ".config")}
    done = subprocess.run(
        [path, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60, cwd=home
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(("words", "expected"), _CASES)
def test_bash_completes(words: tuple[str, ...], expected: set[str], tmp_path: Path) -> None:
    script = _BASH.format(words=shlex.join(words), last=len(words))
    assert set(_shell("bash", "--norc", "-c", script, home=tmp_path).split()) == expected


@pytest.mark.parametrize(("words", "expected"), _CASES)
def test_zsh_completes(words: tuple[str, ...], expected: set[str], tmp_path: Path) -> None:
    script = _ZSH.format(words=shlex.join(words), count=len(words) + 1)
    shown = _shell("zsh", "-f", "-c", script, home=tmp_path)
    # As `_arguments` takes it: *: :(("value":"text" "value":"text"))
    assert set(re.findall(r'(?<=[\s(])"([^"]+)"', shown)) == expected


@pytest.mark.parametrize(("words", "expected"), _CASES)
def test_fish_completes(words: tuple[str, ...], expected: set[str], tmp_path: Path) -> None:
    line = f"orcheo-dispatch {' '.join(words)}"
    script = f"orcheo-dispatch --show-completion | source; complete --do-complete {shlex.quote(line)}"
    shown = _shell("fish", "--no-config", "-c", script, home=tmp_path)
    assert {each.split("\t")[0] for each in shown.splitlines()} == expected


def test_completion_is_installed_for_bash(tmp_path: Path) -> None:
    """A new shell that reads what was installed completes."""
    assert "bash completion installed" in _shell("bash", "-c", "orcheo-dispatch --install-completion; :", home=tmp_path)
    shown = _shell("bash", "--rcfile", str(tmp_path / ".bashrc"), "-ic", "complete -p orcheo-dispatch", home=tmp_path)
    assert "_orcheo_dispatch_completion" in shown


@pytest.mark.parametrize("words", [words for words, _ in _CASES])
def test_completion_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    program = (
        "import sys; sys.argv = ['orcheo-dispatch']\n"
        "from orcheo_dispatch.ops.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print(*sys.modules, file=sys.stderr)\n"
    )
    environment = {
        **os.environ,
        "COMP_WORDS": "\n".join(("orcheo-dispatch", *words)),
        "COMP_CWORD": str(len(words)),
        "_ORCHEO_DISPATCH_COMPLETE": "complete_bash",
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split()
    assert set(done.stderr.split()) & _HEAVY == set()
