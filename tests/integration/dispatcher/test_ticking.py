"""When Beat wakes: once per message, not all the time in the last milliseconds before one is due."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orcheo_dispatch.dispatcher.beat import TickScheduler, make_beat_app
from orcheo_dispatch.shared.broker.app import connect
from orcheo_dispatch.shared.broker.installation import OLD_DISPATCH_QUEUE
from tests.support.database.databases import Database
from tests.support.database.runs import settings_for

_TICKS = 4


@pytest.mark.parametrize(
    "settings", [{"poll_interval": 0.1}, {"poll_interval": 0.5}, {"poll_interval": 0.4, "cron_interval": 1}]
)
def test_beat_wakes_a_few_times_per_message(database: Database, redis_url: str, settings: dict[str, Any]) -> None:
    app = make_beat_app(settings_for(database, redis_url, **settings))
    make: Callable[..., TickScheduler] = app.conf.beat_scheduler
    scheduler = make(app=app)
    wakes = 0
    with connect(redis_url) as client:
        while int(client.llen(OLD_DISPATCH_QUEUE)) < _TICKS:
            scheduler.tick()
            wakes += 1
    # Per message one to send it, one to wait for the next, and one more if the clock says that this was too early.
    # Celery's own scheduler wakes some hundred times.
    assert wakes <= 3 * (_TICKS + 1)
