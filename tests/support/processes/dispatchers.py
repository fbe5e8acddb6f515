"""A dispatcher within the process of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orcheo_dispatch.dispatcher.app import Dispatcher, make_dispatcher_app
from orcheo_dispatch.shared.broker.installation import find_installation
from tests.support.database.databases import Database
from tests.support.database.runs import settings_for


@contextmanager
def dispatcher_of(database: Database, redis_url: str, **overrides: Any) -> Iterator[Dispatcher]:
    """Yield a dispatcher of which nothing has been started; its polls and its upkeep are called by the test."""
    settings = settings_for(database, redis_url, **overrides)
    installation = find_installation(settings)
    app = make_dispatcher_app(settings, installation)
    dispatcher = Dispatcher(settings, app, installation)
    try:
        yield dispatcher
    finally:
        dispatcher.close()
        app.close()
