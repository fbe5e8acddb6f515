"""The command `adopt`: what to change when Orcheo's own worker has run until now, and what it has left behind."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from orcheo_dispatch.ops.commands.ready import Json
from orcheo_dispatch.ops.runs.moments import parse_moment
from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.process.plugins import keep_plugins_out
from orcheo_dispatch.shared.text.plain import say

_LEAST_SECONDS = 60.0


class Left(StrEnum):
    """What becomes of runs that are running, and that no live process holds."""

    FAIL = "fail"
    REQUEUE = "requeue"


class Waiting(StrEnum):
    """What becomes of pending runs."""

    RUN = "run"
    CANCEL = "cancel"


def adopt(
    env_file: Annotated[
        Path | None, typer.Option("--env-file", help="Read this file, such as the stack's .env, not the environment.")
    ] = None,
    older_than: Annotated[
        str, typer.Option(help="Only what has not changed for this long was left behind: 15m, 1h, 2d.")
    ] = "1h",
    repair: Annotated[bool, typer.Option("--repair", help="Repair what was left behind; default: a dry run.")] = False,
    running: Annotated[Left, typer.Option(help="What to do with running runs that no worker executes.")] = (Left.FAIL),
    pending: Annotated[
        Waiting, typer.Option(help="What becomes of old pending runs: dispatchers claim them, or they are cancelled.")
    ] = Waiting.RUN,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before the repair.")] = False,
    as_json: Json = False,
) -> None:
    """Say what has to be set or changed to take over from Orcheo's own worker, and what that has left behind.

    Starts nothing, and changes nothing without --repair. Safe beside a live API and live workers.
    Exits 0 where nothing is left to do, else 1.

    Examples:
      orcheo-dispatch adopt --env-file /etc/orcheo/api.env
      orcheo-dispatch adopt --older-than 2d --repair
    """
    seconds = parse_moment("--older-than", older_than).seconds_ago
    if seconds is None or seconds < _LEAST_SECONDS:
        raise SettingsError.wrong("--older-than", older_than, "a span of a minute or more, such as 15m, 1h or 2d")
    if repair and as_json and not yes:
        raise SettingsError("--repair and --json were both given: add --yes, since nothing can be asked then")
    if repair and not yes and not sys.stdin.isatty():
        raise SettingsError("--repair was given without a terminal to ask on: add --yes")
    keep_plugins_out()
    from orcheo_dispatch.ops import screen
    from orcheo_dispatch.ops.adoption import adoption
    from orcheo_dispatch.ops.adoption.env_advice import advise, cannot_connect, needs_work, read_env_file, settings_of

    environment = read_env_file(env_file) if env_file is not None else dict(os.environ)
    advice = advise(environment)
    if not as_json:
        say(adoption.advice_text(advice))
    plan = adoption.Plan(older_than=seconds, running=running.value, pending=pending.value)
    unseen = cannot_connect(environment)
    found = done = None
    if unseen is None:
        with adoption.Adoption(settings_of(environment), plan) as adopting:
            found = adopting.look()
            if not as_json:
                say(adoption.found_text(found, plan))
            if repair and found.to_repair(plan) and (yes or typer.confirm("Repair this?")):
                done = adopting.repair(found)
                if not as_json:
                    say(adoption.done_text(done))
    elif not as_json:
        say(f"\n{unseen}")
    if as_json:
        screen.print_json(
            {
                "settings": [each.as_json() for each in advice],
                "left_behind": found.as_json() if found is not None else None,
                "repaired": done.as_json() if done is not None else None,
            }
        )
    if needs_work(advice) or unseen is not None:
        raise typer.Exit(1)
    left = found is not None and found.to_repair(plan) and (done is None or done.refused > 0)
    raise typer.Exit(1 if left else 0)
