"""The commands that run until they are stopped: `beat`, `dispatcher`, `worker` and `api`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from orcheo_dispatch.ops.commands.ready import check_schema, ready, refuse_unusable_broker
from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.process.provisions import raise_file_limit

if TYPE_CHECKING:
    from orcheo_dispatch.shared.settings.model import Settings


def beat() -> None:
    """Run Beat: a tick each poll interval.

    Examples:
      orcheo-dispatch beat
    """
    settings = ready(needs_database=False)
    raise_file_limit()
    refuse_unusable_broker(settings)
    from orcheo_dispatch.dispatcher.beat import make_beat_app

    make_beat_app(settings).Beat(quiet=True, loglevel=_celery_level(settings), socket_timeout=30).run()


def dispatcher() -> None:
    """Run a dispatcher: claim pending runs and publish them.

    Examples:
      ORCHEO_HEALTH_PORT=9461 orcheo-dispatch dispatcher    # status page: http://127.0.0.1:9461/
    """
    settings = ready(writes=True)
    raise_file_limit()
    refuse_unusable_broker(settings)
    from orcheo_dispatch.dispatcher.app import make_dispatcher_app
    from orcheo_dispatch.shared.broker.installation import find_installation

    _run_worker(make_dispatcher_app(settings, find_installation(settings)), settings, f"dispatcher-{os.getpid()}@%h")


def worker(
    instance: Annotated[
        int, typer.Option(min=0, max=9999, help="Instance number on a host; added to the health port.")
    ] = 0,
) -> None:
    """Run a worker: execute runs.

    Examples:
      orcheo-dispatch worker
    """
    settings = _of_instance(ready(needs_database=False), instance)
    raise_file_limit(settings.concurrency)
    from orcheo_dispatch.worker.runners.fork_server import start_importing

    # Orcheo takes longer to import than all that follows.
    start_importing()
    check_schema(settings, writes=True)
    refuse_unusable_broker(settings)
    from orcheo_dispatch.shared.broker.installation import find_installation
    from orcheo_dispatch.worker.app import make_worker_app

    _run_worker(make_worker_app(settings, find_installation(settings)), settings, f"worker-{os.getpid()}@%h")


def api(
    host: Annotated[str, typer.Option(help="Address to answer on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to answer on.")] = 8000,
) -> None:
    """Run Orcheo's own API: with uvicorn, credentials and a watchdog; for hosts where nothing else starts it.

    Examples:
      orcheo-dispatch api --host 127.0.0.1 --port 8000
    """
    from orcheo_dispatch.ops.host.api import serve_api

    serve_api(host, port)


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
