"""The listener for the API's pushes: hears at once, ends at once."""

from __future__ import annotations

import json
import threading

import redis

from dispatcher.hints import RUN_HINT, HintListener
from shared.broker import connect
from tests.processes import DEADLINE_SECONDS

# Less than it waits for a message.
_STOP_SECONDS = 3.0


def test_listener_that_waits_for_a_message_ends_when_told_to(redis_url: str) -> None:
    heard = threading.Event()
    client = connect(redis_url)
    listener = HintListener(client, on_run=heard.set, on_cron=heard.clear, interval=1)
    listener.start()
    with redis.Redis.from_url(redis_url) as api:
        api.lpush("celery", json.dumps({"headers": {"task": RUN_HINT}}))
        assert heard.wait(DEADLINE_SECONDS)
        listener.stop(_STOP_SECONDS)
        assert not listener._thread.is_alive()
        assert (api.llen("celery"), api.llen("orcheo.hints")) == (0, 0)
    client.close()
