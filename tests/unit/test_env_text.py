"""Variables in a file of settings: what a shell and systemd read is what was written, or it is refused."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcheo_dispatch.ops.setup.env_file import write_private
from orcheo_dispatch.ops.setup.env_text import assignment, file_text, read_variables
from orcheo_dispatch.shared.errors import DispatchError, SettingsError

_NEED_ESCAPE = '"\\`$'
_SHELLS = [shell for shell in ("sh", "dash", "bash", "zsh") if shutil.which(shell)]
_VALUES = [
    "",
    "plain",
    "postgresql://me:p%40ss@db.internal:5432/orcheo?sslmode=require",
    "with spaces  and\ttab",
    "hash # and ; semicolon",
    "dollar $HOME ${HOME} $(id) `id`",
    "single ' quote",
    'double " quote',
    "both ' and \" and $x",
    "backslash \\ and \\n and \\$HOME \\' '",
    "ends with a backslash\\",
    "'in single quotes'",
    '"in double quotes"',
    "!history ~/tilde *.glob ? [a] {b,c} <in >out |pipe &",
    "=begins with equals",
    "ünïcödé ✓ 漢字",
    " spaces around ",
    "%i %%n",
]


def _read_by_systemd(text: str) -> dict[str, str]:
    """Return the variables of a file by the rules of systemd's `src/basic/env-file.c`, one state per character."""
    found: dict[str, str] = {}
    state, key, value, spaces = "pre-key", "", "", 0
    for character in text:
        match state:
            case "pre-key":
                if character in "#;":
                    state = "comment"
                elif not character.isspace():
                    state, key = "key", character
            case "key":
                if character == "\n":
                    state = "pre-key"
                elif character == "=":
                    state, value, spaces = "pre-value", "", 0
                else:
                    key += character
            case "pre-value" | "value":
                if character == "\n":
                    found[key.strip()] = value[: len(value) - spaces] if spaces else value
                    state = "pre-key"
                elif character == "'" and state == "pre-value":
                    state = "single"
                elif character == '"' and state == "pre-value":
                    state = "double"
                elif character == "\\":
                    state = "escape"
                elif state == "value" or character not in " \t":
                    spaces = spaces + 1 if character in " \t" else 0
                    state, value = "value", value + character
            case "escape":
                state, value = "value", value if character == "\n" else value + character
            case "single":
                if character == "'":
                    state = "pre-value"
                else:
                    value += character
            case "double":
                if character == '"':
                    state = "pre-value"
                elif character == "\\":
                    state = "double-escape"
                else:
                    value += character
            case "double-escape":
                state = "double"
                if character in _NEED_ESCAPE:
                    value += character
                elif character != "\n":
                    value += "\\" + character
            case "comment":
                state = "pre-key" if character == "\n" else state
    return found


def _load_env_file() -> Callable[[Path], dict[str, str]]:
    """Return the function of systemd itself that reads `EnvironmentFile=`; skip the test where it is not there."""
    found = [path for folder in ("/usr/lib", "/lib") for path in Path(folder).glob("**/systemd/libsystemd-shared-*.so")]
    if not found:
        pytest.skip("libsystemd-shared is not installed: apt-get install systemd")
    # int load_env_file(FILE *f, const char *fname, char ***ret)
    load = ctypes.CDLL(str(found[0])).load_env_file

    def read(path: Path) -> dict[str, str]:
        lines = ctypes.POINTER(ctypes.c_char_p)()
        assert load(None, str(path).encode(), ctypes.byref(lines)) >= 0
        texts: list[str] = []
        while lines and (line := lines[len(texts)]) is not None:
            texts.append(line.decode())
        return dict(text.split("=", 1) for text in texts)

    return read


def _read_by(shell: str, path: Path, name: str) -> str:
    script = f'set -a; . "$1"; set +a; exec /usr/bin/printenv {name}'
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nowhere"}
    done = subprocess.run(
        [str(shutil.which(shell)), "-c", script, shell, str(path)], env=environment, capture_output=True, check=True
    )
    return done.stdout.decode().removesuffix("\n")


@pytest.mark.parametrize("value", _VALUES)
def test_value_is_read_alike_by_shells_and_systemd(value: str, tmp_path: Path) -> None:
    path = tmp_path / "orcheo.env"
    path.write_text(file_text("A file\nof settings.", {"FIRST": value, "LAST": "1"}))
    assert {shell: _read_by(shell, path, "FIRST") for shell in _SHELLS} == dict.fromkeys(_SHELLS, value)
    assert _read_by_systemd(path.read_text()) == {"FIRST": value, "LAST": "1"}
    assert read_variables(path) == {"FIRST": value, "LAST": "1"}


def test_values_are_read_by_systemd_itself(tmp_path: Path) -> None:
    load, path = _load_env_file(), tmp_path / "orcheo.env"
    variables = {f"V{number}": value for number, value in enumerate(_VALUES)}
    path.write_text(file_text("A file\nof settings.", variables))
    assert load(path) == variables == _read_by_systemd(path.read_text())


@settings(max_examples=400, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_value_is_written_so_that_systemd_reads_it_or_refused(value: str) -> None:
    try:
        line = assignment("NAME", value)
    except SettingsError:
        assert not value.isprintable()
        return
    assert _read_by_systemd(f"{line}\n") == {"NAME": value}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("\"'\\`$ab %@#!~ =", max_size=12), min_size=1, max_size=40))
def test_any_special_characters_are_read_alike_by_a_shell(values: list[str]) -> None:
    variables = {f"V{number}": value for number, value in enumerate(values)}
    script = file_text("", variables) + "".join(f'printf "%s\\0" "${name}"\n' for name in variables)
    done = subprocess.run(["/bin/sh"], input=script.encode(), capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == values


@pytest.mark.parametrize(
    "value", ["two\nlines", "carriage\rreturn", "nul\0", "escape \x1b[0m", "\udcff", "\x7f", "\ufdd0"]
)
def test_value_that_the_two_read_differently_is_refused_without_being_quoted(value: str) -> None:
    with pytest.raises(SettingsError, match="ORCHEO_POSTGRES_DSN cannot be written") as refused:
        assignment("ORCHEO_POSTGRES_DSN", f"hunter2{value}")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("name", ["", "1A", "A B", "A=B", "A-B", "A\n"])
def test_name_that_is_no_variable_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="is invalid"):
        assignment(name, "x")


def test_file_is_private_whole_and_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "orcheo.env"
    before = os.umask(0)
    try:
        write_private(path, "first\n", replace=False)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(DispatchError, match="exists, nothing was written"):
        write_private(path, "second\n", replace=False)
    assert path.read_text() == "first\n"
    path.chmod(0o644)
    write_private(path, "third\n", replace=True)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("third\n", 0o600)
    assert [each.name for each in tmp_path.iterdir()] == ["orcheo.env"]


def test_file_in_a_folder_that_is_missing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DispatchError, match=r"cannot write .*: No such file or directory"):
        write_private(tmp_path / "no" / "orcheo.env", "x\n", replace=False)


def test_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.env").write_text("old\n")
    (tmp_path / "orcheo.env").symlink_to("real.env")
    write_private(tmp_path / "orcheo.env", "new\n", replace=True)
    assert (tmp_path / "orcheo.env").is_symlink()
    assert (tmp_path / "real.env").read_text() == "new\n"
