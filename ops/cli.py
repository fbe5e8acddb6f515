"""The command `orcheo-dispatch`.

Exit codes: 0 done, 1 failed, 2 settings or usage, 3 database, 4 broker.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from orcheo_dispatch import __version__
from orcheo_dispatch.ops.commands import adopt as adopting
from orcheo_dispatch.ops.commands import alerts as alerting
from orcheo_dispatch.ops.commands import host as hosting
from orcheo_dispatch.ops.commands import init as starting
from orcheo_dispatch.ops.commands import isolate as isolating
from orcheo_dispatch.ops.commands import look as reading
from orcheo_dispatch.ops.commands import pause as pausing
from orcheo_dispatch.ops.commands import policy
from orcheo_dispatch.ops.commands import repair as repairing
from orcheo_dispatch.ops.commands import run as running
from orcheo_dispatch.ops.commands.ready import Json, load_settings, ready, refuse_unusable_broker
from orcheo_dispatch.ops.help.examples import Commands
from orcheo_dispatch.shared.errors import DispatchError, SettingsError
from orcheo_dispatch.shared.process.entry import fail, unexpected
from orcheo_dispatch.shared.process.first_process import stand_aside
from orcheo_dispatch.shared.process.provisions import settle_in
from orcheo_dispatch.shared.text.plain import say

_HELP = """\
Executes Orcheo's pending runs: a Beat that ticks, dispatchers that claim, workers that execute.

Examples:
  orcheo-dispatch demo            # everything for real, in a scratch folder; leaves nothing running
  orcheo-dispatch init            # writes the settings for your own Orcheo
  orcheo-dispatch status --watch
"""

app = typer.Typer(
    name="orcheo-dispatch",
    cls=Commands,
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command; end with one line and a documented exit code, never with a traceback."""
    stand_aside()
    settle_in()
    try:
        app()
    except DispatchError as error:
        fail(error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader has closed the pipe, as `head` does; what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:  # noqa: BLE001 - no traceback reaches a user
        unexpected(error)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"orcheo-dispatch {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the command itself."""


@app.command("migrate")
def migrate_command(
    index: Annotated[bool, typer.Option(help="Make the partial indexes on the API's pending runs.")] = True,
    notify: Annotated[
        bool | None,
        typer.Option(
            "--notify/--no-notify", help="Make, or take out, the trigger that wakes dispatchers at each insert."
        ),
    ] = None,
    to: Annotated[str | None, typer.Option(help="Take the schema back to this revision, for an older release.")] = None,
    as_json: Json = False,
) -> None:
    """Bring the database up to date. May be run again, and by several hosts at once.

    Examples:
      orcheo-dispatch migrate
      orcheo-dispatch migrate --notify
    """
    if to and notify:
        raise SettingsError("--to and --notify were both given: an older release does not listen")
    settings = load_settings()
    from orcheo_dispatch.ops import screen
    from orcheo_dispatch.shared.schema.migrate import migrate, migrate_back

    done = migrate_back(settings, to) if to else migrate(settings, index=index, notify=notify)
    if as_json:
        screen.print_json(
            {
                "revision_before": done.revision_before,
                "revision": done.revision,
                "index_created": done.index_created,
                "index_present": done.index_present,
                "notify": done.notify,
                "made_again": list(done.made_again),
            }
        )
        return
    moved = "is" if done.revision_before == done.revision else f"was {done.revision_before or 'none'}, is now"
    say(f"schema orcheo_dispatch {moved} revision {done.revision}")
    made = "made" if done.index_created else "present" if done.index_present else "left out: claims read all runs"
    say(f"indexes on pending runs: {made}")
    if done.made_again:
        say(f"recreated what was missing: {', '.join(done.made_again)}; 'orcheo-dispatch roles' prints their grants")
    say(f"wake-up by NOTIFY: {'on' if done.notify else 'off: migrate --notify switches it on'}")


@app.command()
def roles() -> None:
    """Print SQL that makes roles of least privilege; to be run by the owner of Orcheo's tables, after `migrate`.

    Examples:
      orcheo-dispatch roles | psql --set ON_ERROR_STOP=1 service=owner
    """
    from orcheo_dispatch.ops.host import rights

    print(rights.roles_sql(), end="")


@app.command()
def man() -> None:
    """Print the manual page of this command and of all below it, for man.

    Examples:
      orcheo-dispatch man | man -l -
      orcheo-dispatch man > /usr/local/share/man/man1/orcheo-dispatch.1
    """
    from typer.core import TyperGroup

    from orcheo_dispatch.ops.help.man_page import man_page

    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    print(man_page(group), end="")


@app.command()
def schema(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[COMMAND]", help="A command, such as status or runs-unclaimed; default: list."),
    ] = None,
) -> None:
    """Print the JSON Schema of what a command prints with --json, or the names of all schemas.

    Examples:
      orcheo-dispatch schema
      orcheo-dispatch schema status > status.schema.json
    """
    from orcheo_dispatch.ops import schemas

    print(schemas.read_schema(name) if name is not None else "\n".join(schemas.names()) + "\n", end="")


app.command()(starting.init)
app.command()(hosting.check)
app.command()(running.beat)
app.command()(running.dispatcher)
app.command()(running.worker)
app.command()(running.api)
app.command()(hosting.health)
app.command()(hosting.units)


@app.command()
def poll(as_json: Json = False) -> None:
    """Poll once: reap, reconcile, claim, publish. Exits 4 if Redis is unavailable.

    Examples:
      orcheo-dispatch poll
      orcheo-dispatch poll --json
    """
    settings = ready(writes=True)
    refuse_unusable_broker(settings)
    from dataclasses import asdict

    from orcheo_dispatch.dispatcher.app import Dispatcher, make_dispatcher_app
    from orcheo_dispatch.ops import screen
    from orcheo_dispatch.shared.broker.installation import find_installation
    from orcheo_dispatch.shared.errors import BrokerError, DatabaseError

    installation = find_installation(settings)
    once = Dispatcher(settings, make_dispatcher_app(settings, installation), installation)
    try:
        report = once.poller.poll()
        once.upkeep.once()
        once.poller.finish()
    finally:
        once.close()
    if as_json:
        screen.print_json({key: value for key, value in asdict(report).items() if key != "next_delay"})
    else:
        say(
            f"claimed {report.claimed}, published {report.published}, released {report.released}, "
            f"extended {report.extended}, lost {report.lost}, requeued {report.requeued}"
        )
    if report.broker_error:
        raise BrokerError(report.broker_error)
    if report.failing:
        raise DatabaseError(f"steps that failed: {', '.join(report.failing)}; their reasons are logged above")


app.command()(reading.status)
app.command()(reading.runs)
app.command()(reading.run)
app.command()(adopting.adopt)
app.command()(repairing.cancel)
app.command()(repairing.fail)
app.command()(repairing.requeue)
app.command()(repairing.answer)
app.command()(isolating.isolate)
app.command()(alerting.alerts)
app.add_typer(policy.app, name="policy")
app.command()(pausing.pause)
app.command()(pausing.unpause)
app.command()(pausing.maintenance)
app.command()(reading.operations)


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running and say how to use it.")] = False,
    webhooks: Annotated[int, typer.Option(min=1, max=10_000, help="Webhooks to fire.")] = 50,
    cli_runs: Annotated[int, typer.Option(min=0, max=1_000, help="Runs to create as a client would.")] = 5,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the status page if there is a display and a terminal.")
    ] = True,
) -> None:
    """Run everything for real in a scratch folder, and kill a worker in the middle of a run.

    Examples:
      orcheo-dispatch demo
      orcheo-dispatch demo --keep
    """
    try:
        from orcheo_dispatch.ops.demo import run_demo
    except ImportError as error:
        raise SettingsError(f"the demo needs {error.name}: pip install 'orcheo-dispatch[demo]'") from error

    raise typer.Exit(run_demo(webhooks=webhooks, cli_runs=cli_runs, keep=keep, browser=browser))


if __name__ == "__main__":
    main()
