"""Waiting for Beat's cron messages: the wait ends at once when it is told to, whatever its connection does then."""

from __future__ import annotations

import threading

from orcheo_dispatch.shared.broker.app import connect
from orcheo_dispatch.shared.broker.installation import Installation
from orcheo_dispatch.worker.cron import QueuePrompts
from tests.support.processes.processes import DEADLINE_SECONDS

_TIMES = 300


def test_wait_that_is_stopped_ends_without_an_error(redis_url: str) -> None:
    """Each time at another moment: connecting, sending, reading."""
    queue = Installation("test").cron
    for n in range(_TIMES):
        client = connect(redis_url)
        prompts = QueuePrompts(client, queue)
        raised: list[BaseException] = []
        ended = threading.Event()

        def wait(
            prompts: QueuePrompts = prompts, raised: list[BaseException] = raised, ended: threading.Event = ended
        ) -> None:
            try:
                assert not prompts.wait(4)
            except BaseException as error:
                raised.append(error)
            ended.set()

        threading.Thread(target=wait, daemon=True).start()
        ended.wait(n * 0.00002)
        while not ended.wait(0.0005):
            prompts.stop()
        client.close()
        assert ended.wait(DEADLINE_SECONDS)
        assert raised == []
