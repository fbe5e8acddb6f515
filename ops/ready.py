"""What commands need before they begin, and options that many of them have."""

from __future__ import annotations

from typing import Annotated

import typer

from shared import logs
from shared.database import open_engine, transaction
from shared.errors import SchemaError
from shared.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="Print JSON with stable names.")]


def ready(*, needs_database: bool = True) -> Settings:
    """Return the settings, with logging set up and the schema known to be the one that this release needs."""
    settings = Settings.load()
    logs.configure(settings)
    if needs_database:
        from shared.revision import current_revision, newest_revision

        with open_engine(settings, role="check") as engine, transaction(engine) as connection:
            revision = current_revision(connection)
        if revision != newest_revision():
            raise SchemaError(
                f"schema orcheo_dispatch is at revision {revision or 'none'}, this release needs "
                f"{newest_revision()}: run 'orcheo-dispatch migrate'"
            )
    return settings
