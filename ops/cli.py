"""The command `orcheo-dispatch`.

Exit codes: 0 done, 1 failed, 2 settings or usage, 3 database, 4 broker.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from ops import reading, rights, screen
from ops import units as systemd
from ops.health import address_of, ask_health, own_address
from ops.ready import Json
from ops.ready import ready as _ready
from ops.repair import Action, repair
from shared import __version__, logs
from shared.database import make_engine
from shared.entry import fail
from shared.errors import DispatchError, SettingsError
from shared.health import DEADLINE_SECONDS
from shared.ledger import ProcessKind
from shared.settings import Settings

app = typer.Typer(
    name="orcheo-dispatch",
    help="Executes Orcheo's pending runs: a Beat that ticks, dispatchers that claim, workers that execute.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command; end with one line and a documented exit code, never with a traceback."""
    try:
        app()
    except DispatchError as error:
        fail(error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Who read has gone, as `head` does; what is still buffered must not fail once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
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
    from shared.migrate import migrate, migrate_back

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
def check(
    kind: Annotated[
        ProcessKind | None, typer.Option("--for", help="Only what a process of this kind needs of its host.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is right and wrong with settings, database, broker and Orcheo, and how to mend it."""
    from ops import check as checks

    findings = checks.check(Settings.load(), kind)
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
def worker(
    instance: Annotated[
        int, typer.Option(min=0, max=9999, help="One of many on a host: its health port is so much higher.")
    ] = 0,
) -> None:
    """Run a worker: execute runs."""
    from worker.app import make_worker_app

    settings = _of_instance(_ready(), instance)
    _run_worker(make_worker_app(settings), settings, f"worker-{os.getpid()}@%h")


@app.command()
def api(
    host: Annotated[str, typer.Option(help="Address to answer on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to answer on.")] = 8000,
) -> None:
    """Run Orcheo's own API: with uvicorn, credentials and a watchdog; for hosts where nothing else starts it."""
    from ops.api import serve_api

    serve_api(host, port)


@app.command()
def health(
    url: Annotated[str | None, typer.Option(help="Where the process answers, such as http://127.0.0.1:9461.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65_535, help="The same, on ORCHEO_HEALTH_HOST.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Only whether it is live: would a restart help?")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds to wait for an answer.")] = DEADLINE_SECONDS,
    as_json: Json = False,
) -> None:
    """Ask a process whether it is live and ready, and say why. Exits 0 if so, 1 if not, 2 where no port is set."""
    if url is not None and port is not None:
        raise SettingsError("--url and --port got a value each, take one of the two")
    at, number = address_of(url) if url is not None else own_address(port)
    found = ask_health(at, number, only_live=live, timeout=timeout)
    if as_json:
        screen.print_json([each.as_json() for each in found])
    else:
        for each in found:
            print(f"{each.name}: {'yes' if each.ok else 'no'}")
            print("".join(f"  {why}\n" for why in each.why), end="")
    raise typer.Exit(0 if all(each.ok for each in found) else 1)


@app.command()
def units(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Only these; default: all.")] = None,
    directory: Annotated[Path | None, typer.Option("--write", help="Write them into this folder.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files there that differ.")] = False,
    user: Annotated[str, typer.Option(help="The user that processes run as.")] = systemd.USER,
    config: Annotated[Path, typer.Option(help="The folder of settings and credentials.")] = systemd.CONFIG,
    command: Annotated[Path | None, typer.Option(help="The command to start; default: this one.")] = None,
) -> None:
    """Print systemd units and an example of orcheo.env, or write the units. Exits 1 where files there differ."""
    installation = systemd.Installation(command or systemd.this_command(), user, config)
    texts = systemd.chosen(installation, names or [], with_environment=directory is None)
    for line in installation.warnings():
        print(f"orcheo-dispatch: warning: {line}", file=sys.stderr)
    if directory is None:
        print(systemd.together(texts), end="")
        return
    written = systemd.write(texts, directory, force=force)
    for name, became in written.items():
        print(f"{directory / name}: {became}")
    if systemd.Written.DIFFERS in written.values():
        print(systemd.difference(texts, directory), end="")
        raise DispatchError("nothing was written: --force replaces what differs")


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


app.command()(reading.status)
app.command()(reading.runs)
app.command()(reading.run)


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


def _of_instance(settings: Settings, instance: int) -> Settings:
    """Return the settings of one of many on a host: with a health port of its own, unless there is none."""
    if not settings.health_port or not instance:
        return settings
    port = settings.health_port + instance
    if port > 65_535:
        raise SettingsError.wrong("ORCHEO_HEALTH_PORT", settings.health_port, f"at most {65_535 - instance} here")
    return settings.model_copy(update={"health_port": port})


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
