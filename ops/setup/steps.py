"""Say what to do after the settings are written, in order."""

from __future__ import annotations

import pwd
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from orcheo_dispatch.ops.help.command_line import typed
from orcheo_dispatch.ops.host import units
from orcheo_dispatch.ops.setup.env_file import MODE
from orcheo_dispatch.ops.setup.variables import VAULT_KEY, shown
from orcheo_dispatch.shared.text.plain import plain

_WIDTH = 32


def summary(variables: Mapping[str, str]) -> str:
    """Return what will be written, without secrets."""
    return "\n".join(f"  {name:{_WIDTH}}{plain(shown(name, value))}" for name, value in variables.items())


def next_steps(path: Path, variables: Mapping[str, str]) -> str:
    """Return the commands that lead from the written file to processes that run, numbered."""
    lines = [f"{path}: written, mode {MODE:04o}. Next, as root:"]
    lines += [f"  {number}. {line}" for number, line in enumerate(_steps(path), 1)]
    if VAULT_KEY not in variables:
        lines.append(f"Workers also need {VAULT_KEY} and the API's other ORCHEO_ variables: add them to the file.")
    lines.append("Each unit has a health port of its own: 9460 Beat, 9461 dispatcher, 9471 worker.")
    return "\n".join(lines)


def _steps(path: Path) -> Iterator[str]:
    command, file = typed(), shlex.quote(str(path))
    of_units = units.CONFIG / units.ENVIRONMENT
    yield f"set -a; . {file}; set +a"
    yield f"{command} migrate    # as the owner of Orcheo's tables"
    yield f"{command} check      # what is wrong, and how to fix it"
    yield "systemctl disable --now STOCK-WORKER STOCK-BEAT    # the units of Orcheo's own worker and Beat"
    if path != of_units:
        yield f"install -D --mode={MODE:04o} {file} {of_units}"
    if not _is_user(units.USER):
        yield f"useradd --system --home-dir /var/lib/orcheo --shell /usr/sbin/nologin {units.USER}"
    yield f"{command} units --write /etc/systemd/system && systemctl daemon-reload"
    yield "systemctl enable --now orcheo-dispatch.target orcheo-beat orcheo-dispatcher orcheo-worker@1"
    yield f"{command} status     # and the status page, http://127.0.0.1:9461/"


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
