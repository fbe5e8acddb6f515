"""The command `orcheo-dispatch`.

Exit codes: 0 done, 1 failed, 2 settings or usage, 3 database, 4 broker.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from ops import check as checks
from ops import queries, rights, screen
from ops.repair import Action, repair
from shared import __version__, logs
from shared.database import make_engine, transaction
from shared.entry import fail
from shared.errors import DispatchError, SchemaError, SettingsError
from shared.migrate import current_revision, migrate, newest_revision
from shared.settings import Settings

app = typer.Typer(
    name="orcheo-dispatch",
    help="Executes Orcheo's pending runs: a Beat that ticks, dispatchers that claim, workers that execute.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON with stable names.")]


def main() -> None:
    """Run the command; end with one line and a documented exit code, never with a traceback."""
    try:
        app()
    except DispatchError as error:
        fail(error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:  # noqa: BLE001 - no traceback reaches a user
        if os.environ.get("ORCHEO_LOG_LEVEL") in ("DEBUG", "TRACE"):
            traceback.print_exc()
        at = logs.describe(error).get("at", "?")
        print(f"orcheo-dispatch: unexpected {type(error).__name__} at {at}", file=sys.stderr)
        raise SystemExit(1) from None


def _version(wanted: bool) -> None:
    if wanted:
        print(f"orcheo-dispatch {__version__}")
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
    index: Annotated[bool, typer.Option(help="Make the partial index on the API's pending runs.")] = True,
    to: Annotated[str | None, typer.Option(help="Take the schema back to this revision, for an older release.")] = None,
    as_json: Json = False,
) -> None:
    """Bring the database up to date. May be run again, and by several hosts at once."""
    from shared.migrate import migrate_back

    done = migrate_back(Settings.load(), to) if to else migrate(Settings.load(), index=index)
    if as_json:
        screen.print_json(
            {
                "revision_before": done.revision_before,
                "revision": done.revision,
                "index_created": done.index_created,
                "index_present": done.index_present,
            }
        )
        return
    moved = "is" if done.revision_before == done.revision else f"was {done.revision_before or 'none'}, is now"
    print(f"schema orcheo_dispatch {moved} revision {done.revision}")
    made = "made" if done.index_created else "present" if done.index_present else "left out: polls read all runs"
    print(f"index on pending runs: {made}")


@app.command()
def roles() -> None:
    """Print SQL that makes roles of least privilege; to be run by the owner of Orcheo's tables, after `migrate`."""
    print(rights.roles_sql(), end="")


@app.command()
def check(as_json: Json = False) -> None:
    """Say what is right and wrong with settings, database, broker and Orcheo, and how to mend it."""
    findings = checks.check(Settings.load())
    if as_json:
        screen.print_json([finding.as_json() for finding in findings])
    else:
        screen.console.print(screen.findings_view(findings))
    raise typer.Exit(checks.exit_code(findings))


@app.command()
def beat() -> None:
    """Run Beat: a tick each poll interval."""
    from dispatcher.beat import make_beat_app

    settings = _ready(needs_database=False)
    make_beat_app(settings).Beat(quiet=True, loglevel=_celery_level(settings), socket_timeout=30).run()


@app.command()
def dispatcher() -> None:
    """Run a dispatcher: claim pending runs and publish them."""
    from dispatcher.app import make_dispatcher_app

    settings = _ready()
    _run_worker(make_dispatcher_app(settings), settings, f"dispatcher-{os.getpid()}@%h")


@app.command()
def worker() -> None:
    """Run a worker: execute runs."""
    from worker.app import make_worker_app

    settings = _ready()
    _run_worker(make_worker_app(settings), settings, f"worker-{os.getpid()}@%h")


@app.command()
def poll(as_json: Json = False) -> None:
    """Poll once, by hand: reap, reconcile, claim, publish. Exits 4 where Redis is away."""
    from dataclasses import asdict

    from dispatcher.app import Dispatcher, make_dispatcher_app
    from shared.errors import BrokerError

    settings = _ready()
    once = Dispatcher(settings, make_dispatcher_app(settings))
    try:
        report = once.poller.poll()
    finally:
        once.close()
    if as_json:
        screen.print_json({key: value for key, value in asdict(report).items() if key != "next_delay"})
    else:
        print(
            f"claimed {report.claimed}, published {report.published}, released {report.released}, "
            f"extended {report.extended}, lost {report.lost}, requeued {report.requeued}"
        )
    if report.broker_error:
        raise BrokerError(report.broker_error)


@app.command()
def status(as_json: Json = False) -> None:
    """Show runs by status, how old pending runs are, what is under way and who is alive."""
    settings = _ready()
    engine = make_engine(settings, role="status", connections=1)
    try:
        found = queries.read_status(engine, triggers=settings.triggers, every_trigger=settings.takes_every_trigger)
    finally:
        engine.dispose()
    if as_json:
        screen.print_json(found.as_json())
    else:
        screen.console.print(screen.status_view(found))


@app.command()
def runs(
    status: Annotated[str | None, typer.Option(help="Only runs with this status.")] = None,
    workflow: Annotated[str | None, typer.Option(help="Only runs of this workflow (its id).")] = None,
    stuck: Annotated[bool, typer.Option("--stuck", help="Only runs that run although their lease is over.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="So many at most, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """List runs, newest first, with their place in the ledger."""
    settings = _ready()
    engine = make_engine(settings, role="runs", connections=1)
    try:
        rows = queries.read_runs(engine, status=status, workflow=workflow, stuck=stuck, limit=limit)
    finally:
        engine.dispose()
    if as_json:
        screen.print_json([row.as_json() for row in rows])
    else:
        screen.console.print(screen.runs_view(rows))


Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids of runs.")]
Reason = Annotated[str, typer.Option(help="Goes into the run's error and audit log.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


@app.command()
def cancel(
    runs: Runs, reason: Reason = "Cancelled by an operator.", dry_run: DryRun = False, as_json: Json = False
) -> None:
    """Cancel runs that are pending or running; a worker that executes one stops it within two heartbeats."""
    _repair(runs, Action.CANCEL, reason, dry_run, as_json)


@app.command("fail")
def fail_command(
    runs: Runs,
    reason: Annotated[str, typer.Option(help="Goes into the run's error and audit log.")],
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fail runs that are pending, or that are running without a worker."""
    _repair(runs, Action.FAIL, reason, dry_run, as_json)


@app.command()
def requeue(
    runs: Runs, reason: Reason = "Requeued by an operator.", dry_run: DryRun = False, as_json: Json = False
) -> None:
    """Make runs pending again that failed, were cancelled, or are running without a worker."""
    _repair(runs, Action.REQUEUE, reason, dry_run, as_json)


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running and say how to use it.")] = False,
    webhooks: Annotated[int, typer.Option(min=1, max=10_000, help="Webhooks to fire.")] = 50,
    cli_runs: Annotated[int, typer.Option(min=0, max=1_000, help="Runs to create as a client would.")] = 5,
) -> None:
    """Run everything for real in a scratch folder: Postgres, Redis, Orcheo's API, and our three processes."""
    try:
        from ops.demo import run_demo
    except ImportError as error:
        raise SettingsError(f"the demo needs {error.name}: pip install 'orcheo-dispatch[demo]'") from error

    raise typer.Exit(run_demo(webhooks=webhooks, cli_runs=cli_runs, keep=keep))


def _repair(runs: list[str], action: Action, reason: str, dry_run: bool, as_json: bool) -> None:
    settings = _ready()
    engine = make_engine(settings, role=action.value, connections=1)
    try:
        done = repair(engine, runs, action, reason=reason, dry_run=dry_run)
    finally:
        engine.dispose()
    if as_json:
        screen.print_json([each.as_json() for each in done])
    else:
        would = "would be " if dry_run else ""
        for each in done:
            said = f"refused: {each.refused}" if each.refused else f"{would}{each.status_before} -> {each.status_after}"
            print(f"{each.run_id}  {said}")
    raise typer.Exit(1 if any(each.refused for each in done) else 0)


def _ready(*, needs_database: bool = True) -> Settings:
    """Return the settings, with logging set up and the schema known to be the one that this release needs."""
    settings = Settings.load()
    logs.configure(settings)
    if needs_database:
        engine = make_engine(settings, role="check", connections=1)
        try:
            with transaction(engine) as connection:
                revision = current_revision(connection)
        finally:
            engine.dispose()
        if revision != newest_revision():
            raise SchemaError(
                f"schema orcheo_dispatch is at revision {revision or 'none'}, this release needs "
                f"{newest_revision()}: run 'orcheo-dispatch migrate'"
            )
    return settings


def _celery_level(settings: Settings) -> str:
    return "DEBUG" if settings.log_level == "TRACE" else settings.log_level


def _run_worker(celery_app: object, settings: Settings, hostname: str) -> None:
    from celery import Celery
    from celery.utils.nodenames import host_format

    assert isinstance(celery_app, Celery)
    # Gossip, mingle and Celery's own heartbeat fill Redis with chatter that nothing here reads.
    celery_worker = celery_app.Worker(
        hostname=host_format(hostname),
        loglevel=_celery_level(settings),
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    celery_worker.start()
    raise typer.Exit(celery_worker.exitcode or 0)


if __name__ == "__main__":
    main()
