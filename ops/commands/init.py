"""The command `init`: ask for the settings, check them, and write them to a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from orcheo_dispatch.ops.host.units import CONFIG, ENVIRONMENT
from orcheo_dispatch.shared.broker import celery_environment
from orcheo_dispatch.shared.errors import DispatchError, SettingsError
from orcheo_dispatch.shared.process.plugins import keep_plugins_out
from orcheo_dispatch.shared.text.plain import plain, say

_HEAD = """\
Settings of orcheo-dispatch, written by 'orcheo-dispatch init'. Holds secrets: keep its mode 0600.
'orcheo-dispatch units orcheo.env' prints every setting with its default."""
_INTERRUPTED = 130


def init(
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", help="The file to write. [default: /etc/orcheo-dispatch/orcheo.env for root, else ./orcheo.env]"
        ),
    ] = None,
    env_file: Annotated[
        Path | None,
        typer.Option("--env-file", help="Take defaults from this file, such as the API's, then from the environment."),
    ] = None,
    poll_interval: Annotated[float | None, typer.Option(help="Seconds between two polls.")] = None,
    token: Annotated[
        bool | None, typer.Option("--token/--no-token", help="Whether /metrics and the status page require a token.")
    ] = None,
    connect: Annotated[
        bool, typer.Option("--check/--no-check", help="Whether to connect to Postgres and Redis.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace the file; its variables become defaults.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Ask nothing: take the environment, --env-file and defaults.")
    ] = False,
) -> None:
    """Write the settings of this host to a file: ask for them, check each answer, connect to Postgres and Redis.

    The file has mode 0600, and both systemd and a shell can read it. Secrets are asked for or come from the
    environment or --env-file, never from an option, and are not printed. Exits 130 at Ctrl-C; nothing is written then.

    Examples:
      orcheo-dispatch init
      orcheo-dispatch init --yes --env-file /etc/orcheo/api.env --file ./orcheo.env
    """
    if not yes and not sys.stdin.isatty():
        raise SettingsError("init was started without a terminal to ask on: add --yes, which takes the environment")
    keep_plugins_out()
    celery_environment.clean()
    target = _target(file)
    try:
        replace = force or (target.exists() and not yes and _confirmed(target))
        if target.exists() and not replace:
            raise DispatchError(f"{target} exists, nothing was written: --force replaces it")
        _write(target, env_file, poll_interval, token, connect=connect, replace=replace, yes=yes)
    except (KeyboardInterrupt, typer.Abort):
        say("\nnothing was written", to=sys.stderr)
        raise typer.Exit(_INTERRUPTED) from None


def _target(file: Path | None) -> Path:
    """Return the absolute path of the file to write. Raises `SettingsError` if it cannot be written there."""
    given = file or (CONFIG / ENVIRONMENT if os.geteuid() == 0 else Path(ENVIRONMENT))
    target = Path(os.path.abspath(given))  # noqa: PTH100 - a link stays a link
    if target.parent == CONFIG and not CONFIG.exists() and os.geteuid() == 0:
        # Made when there is something to write.
        return target
    if target.is_dir() or not os.access(target.parent, os.W_OK | os.X_OK):
        raise SettingsError.wrong("--file", str(given), "a file in a folder that is there and can be written to")
    return target


def _confirmed(target: Path) -> bool:
    question = (
        f"{plain(str(target))} exists. Replace it? Its variables are kept or become defaults, its comments are lost."
    )
    return typer.confirm(question, default=False)


def _write(
    target: Path,
    env_file: Path | None,
    poll_interval: float | None,
    token: bool | None,
    *,
    connect: bool,
    replace: bool,
    yes: bool,
) -> None:
    from orcheo_dispatch.ops.setup.env_file import write_private
    from orcheo_dispatch.ops.setup.env_text import file_text
    from orcheo_dispatch.ops.setup.questions import ask, take
    from orcheo_dispatch.ops.setup.steps import next_steps, summary
    from orcheo_dispatch.ops.setup.variables import INTERVAL, accepted, known

    found = known(target, env_file, os.environ)
    if poll_interval is not None:
        given = accepted(INTERVAL, f"{poll_interval:g}")
        found = type(found)({**found.defaults, INTERVAL: given}, found.carried)
    answers = (take if yes else ask)(found, connect=connect, token=token)
    variables = {**answers, **found.carried}
    text = file_text(_HEAD, variables)
    say(f"\n{plain(str(target))}:\n{summary(variables)}")
    if not yes and not typer.confirm("Write it?", default=True):
        raise typer.Abort
    if target.parent == CONFIG:
        CONFIG.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_private(target, text, replace=replace)
    say(f"\n{next_steps(target, variables)}")
