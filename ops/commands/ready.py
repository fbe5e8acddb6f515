"""Settings, logging and checks that commands need before they start, and options that many of them share.

Like all modules that define commands it imports at the top only what is light: each start of the command, each
completion at a tab and each probe of a container pays for it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from orcheo_dispatch.shared.broker import celery_environment
from orcheo_dispatch.shared.errors import SchemaError
from orcheo_dispatch.shared.process.plugins import keep_plugins_out

if TYPE_CHECKING:
    from orcheo_dispatch.shared.settings.model import Settings

Json = Annotated[bool, typer.Option("--json", help="Print JSON with stable names.")]


def load_settings() -> Settings:
    """Return the settings. Pydantic's plugins are not loaded, unless the environment selects some."""
    keep_plugins_out()
    from orcheo_dispatch.shared.logs.secret_names import keep_secrets_of
    from orcheo_dispatch.shared.settings.model import Settings

    settings = Settings.load()
    keep_secrets_of(settings)
    # Before anything imports Celery.
    celery_environment.clean()
    return settings


def ready(*, needs_database: bool = True, writes: bool = False) -> Settings:
    """Return the settings, with logging set up and the schema known to be the one that this release needs.

    For who `writes`, nothing else in the database stands in the way either. Raises `SchemaError` with a line for each
    thing that does.
    """
    settings = load_settings()
    from orcheo_dispatch.shared.logs import setup as logs

    logs.configure(settings)
    if needs_database:
        check_schema(settings, writes=writes)
    return settings


def check_schema(settings: Settings, *, writes: bool = False) -> None:
    """Raise `SchemaError` unless the schema is the one that this release needs; see `ready`."""
    from orcheo_dispatch.shared.database.connections import open_engine, transaction
    from orcheo_dispatch.shared.schema.footing import unmet_to_read, unmet_to_write
    from orcheo_dispatch.shared.schema.revision import current_revision, newest_revision

    with open_engine(settings, role="check") as engine, transaction(engine) as connection:
        unmet = unmet_to_read(connection)
        revision = current_revision(connection)
        if writes and not unmet and revision == newest_revision():
            unmet = unmet_to_write(connection)
    if unmet:
        raise SchemaError("\n".join(map(str, unmet)))
    if revision != newest_revision():
        raise SchemaError(
            f"schema orcheo_dispatch is at revision {revision or 'none'}, this release needs "
            f"{newest_revision()}: run 'orcheo-dispatch migrate'"
        )


def refuse_unusable_broker(settings: Settings) -> None:
    """Raise `BrokerError` where Redis is a cluster or a sentinel; one that is unavailable is waited for later."""
    from orcheo_dispatch.shared.broker.server import refuse_unusable

    refuse_unusable(settings)


def finite(seconds: float) -> float:
    """Return an option's value. Raises `typer.BadParameter` for "nan", which no range of click's refuses."""
    if not math.isfinite(seconds):
        raise typer.BadParameter(f"{seconds} is no number of seconds.")
    return seconds
