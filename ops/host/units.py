"""Write the systemd units of this installation: its executable, its user, its folder of settings."""

from __future__ import annotations

import difflib
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path

from orcheo_dispatch.shared.errors import DispatchError, SettingsError

ENVIRONMENT = "orcheo.env"
USER = "orcheo"
CONFIG = Path("/etc/orcheo-dispatch")
COMMAND = Path("/opt/orcheo-dispatch/bin/orcheo-dispatch")
"""What the files in `ops/systemd` say; a unit gets what this installation has instead."""
NAMES = (
    "orcheo-api.service",
    "orcheo-beat.service",
    "orcheo-dispatcher.service",
    "orcheo-worker@.service",
    "orcheo-dispatch.target",
)
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}\$?|[0-9]+")
# What ends a word in a unit, or begins a specifier.
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9_@+=:,./-]+")
_HIDDEN = (Path("/home"), Path("/root"), Path("/run/user"))
_PER_PROCESS = "ORCHEO_HEALTH_PORT"
_MODE = 0o644


class Written(StrEnum):
    """What became of a file."""

    NEW = "written"
    SAME = "unchanged"
    REPLACED = "replaced"
    DIFFERS = "differs"


@dataclass(frozen=True, slots=True)
class Installation:
    """Paths and user of the units."""

    command: Path
    user: str = USER
    config: Path = CONFIG

    def __post_init__(self) -> None:
        """Raise `SettingsError` for what no unit can say."""
        if not _USER.fullmatch(self.user):
            raise SettingsError.wrong("--user", self.user, "the name or the number of a user")
        for option, path in (("--command", self.command), ("--config", self.config)):
            if not _PLAIN_PATH.fullmatch(str(path)):
                raise SettingsError.wrong(option, str(path), "an absolute path of letters, digits and _@+=:,./-")

    def warnings(self) -> list[str]:
        """Return what would keep the units from starting here, a line each."""
        if not self.command.exists():
            return [f"{self.command} is not there yet"]
        hidden = [
            path
            for path in {self.command, self.command.resolve(), _interpreter(self.command)}
            if any(path.is_relative_to(folder) for folder in _HIDDEN)
        ]
        return [
            f"{path} is in a folder that ProtectHome=yes hides from the units: install into one such as /opt"
            for path in sorted(hidden)
        ]


def this_command() -> Path:
    """Return the command of this installation: beside the Python that runs, without following its links."""
    return Path(sys.executable).with_name("orcheo-dispatch")


def units(installation: Installation) -> dict[str, str]:
    """Return the units by name."""
    return {
        name: _made_for(installation, (files("orcheo_dispatch.ops") / "systemd" / name).read_text("utf-8"))
        for name in NAMES
    }


def chosen(installation: Installation, names: list[str], *, with_environment: bool) -> dict[str, str]:
    """Return the files of these names, or all units (and the example of settings) where there are none.

    Raises `SettingsError` for a name that is none.
    """
    known = {**units(installation), ENVIRONMENT: environment_example(installation.config)}
    if wrong := [name for name in names if name not in known]:
        raise SettingsError.wrong("NAME", wrong[0], ", ".join(known))
    wanted = names or [*NAMES, *([ENVIRONMENT] if with_environment else [])]
    return {name: known[name] for name in known if name in wanted}


def together(texts: dict[str, str]) -> str:
    """Return one file as it is, and many with a line above each that says which it is."""
    if len(texts) == 1:
        return next(iter(texts.values()))
    return "\n".join(f"# --- {name}\n\n{text}" for name, text in texts.items())


def environment_example(config: Path = CONFIG) -> str:
    """Return a file with every setting and its default, each commented out."""
    from orcheo_dispatch.shared.settings.model import secret_variables, variables

    secret = secret_variables()
    return "\n".join(
        [
            _ENVIRONMENT_HEAD.replace(str(CONFIG), str(config)),
            *(_entry(name, *said, secret=name in secret) for name, said in variables().items()),
        ]
    )


def write(texts: dict[str, str], directory: Path, *, force: bool = False) -> dict[str, Written]:
    """Write the files, all or none, and return what became of each.

    One that is there and differs is left alone unless `force` is given, and then so are all others. A file is whole
    at any time. Raises `DispatchError` where the folder cannot be written to.
    """
    try:
        found = {name: _found(directory / name, text) for name, text in texts.items()}
        if Written.DIFFERS in found.values() and not force:
            return found
        for name, text in texts.items():
            if found[name] is not Written.SAME:
                _replace(directory / name, text)
    except OSError as error:
        raise DispatchError(f"cannot write to {directory}: {error.strerror}") from error
    return {name: Written.REPLACED if each is Written.DIFFERS else each for name, each in found.items()}


def difference(texts: dict[str, str], directory: Path) -> str:
    """Return how the files in the folder would change, as a unified diff."""
    lines: list[str] = []
    for name, text in texts.items():
        path = directory / name
        if path.exists():
            there = path.read_text("utf-8", "replace").splitlines(keepends=True)
            lines += difflib.unified_diff(there, text.splitlines(keepends=True), str(path), f"{name} (new)")
    return "".join(lines)


def _made_for(installation: Installation, text: str) -> str:
    text = text.replace(str(COMMAND), str(installation.command))
    text = text.replace(str(CONFIG), str(installation.config))
    return text.replace(f"User={USER}\n", f"User={installation.user}\n")


def _found(path: Path, text: str) -> Written:
    if not path.exists():
        return Written.NEW
    return Written.SAME if path.read_text("utf-8", "replace") == text else Written.DIFFERS


def _replace(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", encoding="utf-8", delete=False
    ) as new:
        try:
            new.write(text)
            new.flush()
            os.fchmod(new.fileno(), _MODE)
            Path(new.name).replace(path)
        except BaseException:
            Path(new.name).unlink(missing_ok=True)
            raise


def _interpreter(command: Path) -> Path:
    return command.with_name("python").resolve()


_ENVIRONMENT_HEAD = """\
# Settings of orcheo-dispatch: /etc/orcheo-dispatch/orcheo.env, read by all of its units and by orcheo-api.service.
# Every setting is here with its default; take away the # of what you change. Durations are in seconds.
# What one kind of process is to have for itself goes into beat.env, dispatcher.env, worker.env or api.env beside it.
# What else Orcheo's API and its workers need (ORCHEO_... backends and so on) goes in here as well.
"""


def _entry(name: str, default: str, description: str, *, secret: bool) -> str:
    notes = []
    if secret:
        notes.append(f"# Holds a secret: better a file credentials/{name}, of root and with mode 0600.")
    if name == _PER_PROCESS:
        notes.append(
            "# Not here: the units give each process one of its own (9460 Beat, 9461 dispatcher, 9471 orcheo-worker@1)."
        )
    value = "" if default in {"required", "unset"} else default
    required = " Required." if default == "required" else ""
    return "\n".join([f"# {description}{required}", *notes, f"#{name}={value}", ""])
