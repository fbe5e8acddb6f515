"""A Beat that prints how often it woke until its first ticks were sent, and ends: run as a program by the tests."""

from __future__ import annotations

import sys
from collections.abc import Callable

from orcheo_dispatch.dispatcher.beat import TickScheduler, make_beat_app
from orcheo_dispatch.shared.broker.app import connect
from orcheo_dispatch.shared.broker.installation import OLD_DISPATCH_QUEUE
from orcheo_dispatch.shared.settings.model import Settings

if __name__ == "__main__":
    settings = Settings.load()
    app = make_beat_app(settings)
    make: Callable[..., TickScheduler] = app.conf.beat_scheduler
    scheduler = make(app=app)
    wakes = 0
    with connect(str(app.conf.broker_url)) as client:
        while int(client.llen(OLD_DISPATCH_QUEUE)) < int(sys.argv[1]):
            scheduler.tick()
            wakes += 1
    print(wakes)
