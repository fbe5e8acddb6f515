"""The units as text: for this installation, complete, and written with care."""

from __future__ import annotations

import re
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest

from orcheo_dispatch.ops.host.units import (
    COMMAND,
    ENVIRONMENT,
    NAMES,
    Installation,
    Written,
    environment_example,
    this_command,
    units,
    write,
)
from orcheo_dispatch.shared.errors import DispatchError, SettingsError
from orcheo_dispatch.shared.settings.model import Settings, secret_variables, variables
from orcheo_dispatch.worker.runner.threads import MOST_THREADS

ROOT = Path(__file__).parents[2]
_FOLDER = ROOT / "ops" / "systemd"
_SERVICES = [name for name in NAMES if name.endswith(".service")]
_OURS = [name for name in _SERVICES if name != "orcheo-api.service"]
_LINE = re.compile(r"^#(?P<name>[A-Z_]+)=(?P<value>.*)$", re.MULTILINE)


class _Repeated(dict[str, Any]):
    """A section in which a name that comes again is added to, as systemd reads it."""

    def __setitem__(self, key: str, value: Any) -> None:
        if key in self and isinstance(value, list):
            value = [*self[key], *value]
        super().__setitem__(key, value)


def _service(name: str) -> dict[str, str]:
    """Return the section [Service]; what comes many times is many lines."""
    parser = RawConfigParser(dict_type=_Repeated, strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(units(Installation(COMMAND))[name])
    return dict(parser["Service"])


def test_example_has_every_setting_with_its_default() -> None:
    shown = {found["name"]: found["value"] for found in _LINE.finditer(environment_example())}
    defaults = {name: default for name, (default, _) in variables().items()}
    assert shown == {name: "" if default in {"required", "unset"} else default for name, default in defaults.items()}


def test_example_in_the_folder_is_the_one_that_is_printed() -> None:
    """Where this is red: orcheo-dispatch units orcheo.env > ops/systemd/orcheo.env.example."""
    assert (_FOLDER / f"{ENVIRONMENT}.example").read_text() == environment_example()


def test_folder_has_each_unit_and_nothing_else() -> None:
    assert {path.name for path in _FOLDER.iterdir()} == {*NAMES, f"{ENVIRONMENT}.example"}


def test_units_of_the_default_installation_are_the_files() -> None:
    assert units(Installation(COMMAND)) == {name: (_FOLDER / name).read_text() for name in NAMES}


def test_units_name_command_user_and_folder() -> None:
    made = units(Installation(Path("/srv/venv/bin/orcheo-dispatch"), "robot", Path("/srv/etc")))
    for name in _SERVICES:
        assert "User=robot\n" in made[name]
        assert "ExecStart=/srv/venv/bin/orcheo-dispatch " in made[name]
        assert "EnvironmentFile=-/srv/etc/orcheo.env\n" in made[name]
        assert "/opt/" not in made[name].replace("such as /opt", "")
        assert "/etc/orcheo-dispatch" not in made[name]


def test_every_secret_may_be_a_credential_of_the_dispatcher() -> None:
    """Beat has no DSN, and a worker no token of the API: neither needs it."""
    assert "ORCHEO_SERVICE_TOKEN" in secret_variables()
    text = units(Installation(COMMAND))["orcheo-dispatcher.service"]
    for name in secret_variables():
        assert f"LoadCredential={name}:/etc/orcheo-dispatch/credentials/{name}\n" in text
        # Without it a file that is not there would keep the process from starting.
        assert f"SetCredential={name}:\\n\n" in text


@pytest.mark.parametrize("name", _SERVICES)
def test_stop_time_is_above_the_drain(name: str) -> None:
    service = _service(name)
    assert service["KillMode"] == "mixed"
    assert service["Type"] == "notify"
    assert service["Restart"] == "always"
    if "worker" in name:
        settings = Settings.load(postgres_dsn="postgresql:///x", drain_timeout=60, cancel_grace=5)
        assert float(service["TimeoutStopSec"]) >= settings.drain_timeout + settings.cancel_grace + 30


def test_end_of_a_runner_is_the_end_of_nothing_else() -> None:
    """Runners and programs that runs start are processes of the worker's unit, and may be killed for want of memory."""
    service = _service("orcheo-worker@.service")
    assert service["OOMPolicy"] == "continue"
    # What a run starts inherits no say in whether the worker is alive.
    assert service["NotifyAccess"] == "main"
    defaults = Settings.model_fields
    assert (
        int(service["TasksMax"]) >= defaults["max_processes"].default * MOST_THREADS + defaults["concurrency"].default
    )
    # Neither is a limit that one run can use up for all runners.
    assert not {"MemoryMax", "LimitNPROC", "LimitAS"} & set(service)


def test_one_instance_of_the_worker_is_what_a_host_needs() -> None:
    text = units(Installation(COMMAND))["orcheo-worker@.service"]
    assert "\nDefaultInstance=1\n" in text
    assert "orcheo-worker@2" not in "".join(units(Installation(COMMAND)).values())


@pytest.mark.parametrize("name", _OURS)
def test_outage_never_meets_the_start_limit(name: str) -> None:
    text = units(Installation(COMMAND))[name]
    interval, burst, pause = (
        float(re.search(rf"^{key}=(\d+)$", text, re.MULTILINE)[1])  # type: ignore[index]
        for key in ("StartLimitIntervalSec", "StartLimitBurst", "RestartSec")
    )
    assert burst > interval / pause


def test_each_process_of_a_host_has_a_health_port_of_its_own() -> None:
    texts = units(Installation(COMMAND))
    ports = [re.findall(r"^Environment=ORCHEO_HEALTH_PORT=(\d+)$", texts[name], re.MULTILINE) for name in _OURS]
    assert all(len(found) == 1 for found in ports)
    beat, dispatcher, worker = (int(found[0]) for found in ports)
    # Workers count up from theirs, from 1.
    assert beat < dispatcher < worker


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"user": "no body"}, "--user='no body' is invalid: expected"),
        ({"user": "x\nExecStart=/bin/evil"}, "--user='x\\nExecStart"),
        ({"command": Path("relative")}, "--command='relative' is invalid: expected an absolute path"),
        ({"command": Path("/opt/100%/orcheo")}, "--command='/opt/100%/orcheo' is invalid"),
        ({"config": Path("/etc/a b")}, "--config='/etc/a b' is invalid: expected an absolute path"),
    ],
)
def test_what_no_unit_can_say_is_refused(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Installation(**{"command": COMMAND, **arguments})  # type: ignore[arg-type]
    assert str(raised.value).startswith(says)


def test_installation_that_systemd_would_hide_is_warned_of(tmp_path: Path) -> None:
    assert Installation(tmp_path / "none").warnings() == [f"{tmp_path / 'none'} is not there yet"]
    command = tmp_path / "orcheo-dispatch"
    command.touch()
    (tmp_path / "python").symlink_to("/root/python3")
    assert "ProtectHome=yes hides" in Installation(command).warnings()[0]


def test_files_are_written_once_and_replaced_only_when_asked(tmp_path: Path) -> None:
    texts = units(Installation(COMMAND))
    assert set(write(texts, tmp_path).values()) == {Written.NEW}
    assert set(write(texts, tmp_path).values()) == {Written.SAME}
    mine = tmp_path / "orcheo-beat.service"
    mine.write_text("mine")
    (tmp_path / "orcheo-api.service").unlink()
    found = write(texts, tmp_path)
    assert (found["orcheo-beat.service"], found["orcheo-api.service"]) == (Written.DIFFERS, Written.NEW)
    # All or none.
    assert mine.read_text() == "mine"
    assert not (tmp_path / "orcheo-api.service").exists()
    assert write(texts, tmp_path, force=True)["orcheo-beat.service"] is Written.REPLACED
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == texts
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DispatchError, match=r"cannot write to .*/none: No such file"):
        write(units(Installation(COMMAND)), tmp_path / "none")


def _command(*arguments: str, expect: int = 0) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "orcheo_dispatch.ops.cli", "units", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def test_command_prints_writes_and_shows_what_differs(tmp_path: Path) -> None:
    printed, _ = _command()
    assert all(f"# --- {name}\n" in printed for name in (*NAMES, ENVIRONMENT))
    assert f"ExecStart={this_command()} worker" in printed
    assert _command(ENVIRONMENT)[0] == environment_example()
    _command("--write", str(tmp_path))
    assert "TimeoutStopSec" in (tmp_path / "orcheo-worker@.service").read_text()
    printed, said = _command("--write", str(tmp_path), "--user", "robot", expect=1)
    assert "-User=orcheo\n+User=robot\n" in printed
    assert said.splitlines()[-1] == "orcheo-dispatch: nothing was written: --force replaces what differs"
    _command("--write", str(tmp_path), "--user", "robot", "--force")
    assert "NAME='nobody' is invalid: expected orcheo-api.service" in _command("nobody", expect=2)[1]
