"""What the environment brings: every setting, with any value that an environment can hold, and as a credential."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.settings.environment import export_values, notes
from orcheo_dispatch.shared.settings.model import Settings, secret_variables, variables
from tests.fuzz.examples import SECRET, check_line, damaged, fuzzed, fuzzed_by_process
from tests.support.processes.processes import ROOT

_SECRETS = frozenset(secret_variables())
_SOUND: dict[str, Any] = {
    "ORCHEO_POSTGRES_DSN": f"postgresql://orcheo:{SECRET}@db:5432/orcheo?sslmode=require",
    "REDIS_URL": f"rediss://user:{SECRET}@redis:6379/0?ssl_cert_reqs=none",
    "ORCHEO_REDIS_URL": f"redis://:{SECRET}@redis:6379/1",
    "ORCHEO_ALERTS_URLS": f"json://user:{SECRET}@host/path",
    "ORCHEO_API_URL": "http://127.0.0.1:8000",
    "ORCHEO_PAGE_PROXIES": "10.0.0.0/8, ::1",
    "ORCHEO_WORKER_QUEUES": "gpu,default",
}
_ODD = [
    "-1",
    "0",
    "1e9",
    "1e999",
    "nan",
    "inf",
    "٣",
    "1_0",
    "0x10",
    "true",
    "'",
    '"',
    '""',
    "\ufeff5",
    "a,b",
    ",",
    "*",
    "http://[",
    "://",
    "redis://",
]
_ODD += ["postgresql://", "x=", " 5\n", "host=x port=y", "x" * 5000, "9" * 400, "\x1b[31m\n"]

bits = st.characters(exclude_characters="\x00", exclude_categories=["Cs"])
anything = (
    st.text(bits, max_size=60)
    | st.binary(max_size=20).map(lambda each: os.fsdecode(each.replace(b"\x00", b"")))
    | st.sampled_from(_ODD)
)


@st.composite
def environments(draw: st.DrawFn) -> dict[str, str]:
    """Return a few variables with values of any kind; those that hold a secret often have one."""
    found = {"ORCHEO_POSTGRES_DSN": _SOUND["ORCHEO_POSTGRES_DSN"]}
    for name in draw(st.lists(st.sampled_from(sorted(variables())), min_size=1, max_size=4, unique=True)):
        sound = _SOUND.get(name) or variables()[name][0]
        near = damaged(sound.encode()).map(lambda each: os.fsdecode(each.replace(b"\x00", b"")))
        value = draw(anything | near)
        if name in _SECRETS and draw(st.booleans()):
            value = f"{value}{SECRET}"
        found[draw(st.sampled_from([name, name, name.lower()]))] = value
    return found


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in {*variables(), *map(str.lower, variables()), "CREDENTIALS_DIRECTORY"}:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def _check(error: SettingsError) -> None:
    text = str(error)
    assert error.exit_code == 2
    assert SECRET not in text
    for line in text.split("\n"):
        check_line(line)
        assert any(line.startswith((name, f"credential {name}")) for name in variables()), line


@given(environment=environments())
@fuzzed
def test_environment_is_taken_or_is_one_line_for_each_variable(
    bare: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    with bare.context() as context:
        for name, value in environment.items():
            context.setenv(name, value)
        try:
            settings = Settings.load()
        except SettingsError as error:
            _check(error)
            return
        assert SECRET not in repr(settings)
        for note in notes(variables()):
            check_line(f"{note.variable} {note.text}")
        export_values(dict(os.environ))


@given(environment=environments())
@fuzzed
def test_credentials_are_taken_or_are_one_line_for_each(
    bare: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str]
) -> None:
    for each in tmp_path.iterdir():
        each.unlink()
    for name, value in environment.items():
        (tmp_path / name.upper()).write_bytes(os.fsencode(value))
    with bare.context() as context:
        context.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        try:
            settings = Settings.load()
            export_values(dict(os.environ))
        except SettingsError as error:
            _check(error)
            return
        assert SECRET not in repr(settings)


@pytest.mark.timeout(7200)
def test_process_says_what_is_wrong_in_lines_and_exits_with_2(bare: pytest.MonkeyPatch) -> None:
    @given(environment=environments())
    @fuzzed_by_process
    def run(environment: dict[str, str]) -> None:
        with bare.context() as context:
            for name, value in environment.items():
                context.setenv(name, value)
            # Nothing listens there: where all settings are valid, the database is what is wrong.
            if "ORCHEO_POSTGRES_DSN" in environment:
                context.setenv("ORCHEO_POSTGRES_DSN", f"postgresql://orcheo:{SECRET}@127.0.0.1:1/orcheo")
            context.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
            command = [sys.executable, "-m", "orcheo_dispatch.ops.cli", "status", "--json"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=60)
        said = done.stderr.decode("utf-8", "replace")
        assert done.returncode in {2, 3}, said
        assert said.strip()
        assert SECRET not in said + done.stdout.decode("utf-8", "replace")
        assert "Traceback" not in said

    run()
