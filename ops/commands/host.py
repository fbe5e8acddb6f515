"""The commands for a host: `check`, `health` and `units`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from orcheo_dispatch.ops.commands.ready import Json, finite, load_settings
from orcheo_dispatch.ops.host import units as systemd
from orcheo_dispatch.ops.host.health import address_of, ask_health, own_address
from orcheo_dispatch.shared.errors import DispatchError, SettingsError
from orcheo_dispatch.shared.health.probe import DEADLINE_SECONDS
from orcheo_dispatch.shared.ledger.model import ProcessKind
from orcheo_dispatch.shared.text.plain import plain, say


def check(
    kind: Annotated[
        ProcessKind | None, typer.Option("--for", help="Only what a process of this kind needs of its host.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is right and wrong with settings, database, broker and Orcheo, and how to fix it.

    Examples:
      orcheo-dispatch check
      orcheo-dispatch check --for worker
    """
    settings = load_settings()
    from orcheo_dispatch.ops import screen
    from orcheo_dispatch.ops.host import check as checks

    findings = checks.check(settings, kind)
    if as_json:
        screen.print_json([finding.as_json() for finding in findings])
    else:
        screen.console.print(screen.findings_view(findings))
    raise typer.Exit(checks.exit_code(findings))


def health(
    url: Annotated[str | None, typer.Option(help="Where the process answers, such as http://127.0.0.1:9461.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65_535, help="The same, on ORCHEO_HEALTH_HOST.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Only whether it is live: would a restart help?")] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=60, callback=finite, help="Seconds to wait for an answer.")
    ] = DEADLINE_SECONDS,
    as_json: Json = False,
) -> None:
    """Ask a process whether it is live and ready, and say why. Exits 0 if so, 1 if not, 2 where no port is set.

    Examples:
      orcheo-dispatch health --port 9461
      orcheo-dispatch health --url http://127.0.0.1:9471 --live
    """
    if url is not None and port is not None:
        raise SettingsError("--url and --port were both given: expected one of the two")
    at, number = address_of(url) if url is not None else own_address(port)
    found = ask_health(at, number, only_live=live, timeout=timeout)
    if as_json:
        from orcheo_dispatch.ops import screen

        screen.print_json([each.as_json() for each in found])
    else:
        for each in found:
            say(f"{each.name}: {'yes' if each.ok else 'no'}")
            for why in each.why:
                say(f"  {plain(why)}")
    raise typer.Exit(0 if all(each.ok for each in found) else 1)


def units(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Only these; default: all.")] = None,
    directory: Annotated[Path | None, typer.Option("--write", help="Write them into this folder.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files there that differ.")] = False,
    user: Annotated[str, typer.Option(help="The user that processes run as.")] = systemd.USER,
    config: Annotated[Path, typer.Option(help="The folder of settings and credentials.")] = systemd.CONFIG,
    command: Annotated[Path | None, typer.Option(help="The command to start; default: this one.")] = None,
) -> None:
    """Print systemd units and an example of orcheo.env, or write the units. Exits 1 where files there differ.

    Examples:
      orcheo-dispatch units orcheo-worker@.service
      orcheo-dispatch units --write /etc/systemd/system
    """
    installation = systemd.Installation(command or systemd.this_command(), user, config)
    texts = systemd.chosen(installation, names or [], with_environment=directory is None)
    for line in installation.warnings():
        say(f"orcheo-dispatch: warning: {plain(line)}", to=sys.stderr)
    if directory is None:
        print(systemd.together(texts), end="")
        return
    written = systemd.write(texts, directory, force=force)
    for name, became in written.items():
        say(plain(f"{directory / name}: {became}"))
    if systemd.Written.DIFFERS in written.values():
        print(systemd.difference(texts, directory), end="")
        raise DispatchError("nothing was written: --force replaces what differs")
