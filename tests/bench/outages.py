"""What an outage costs: a worker killed, Redis back empty, Postgres killed under load. Two minutes; one sample each."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from orcheo_dispatch.ops.demo import WORKFLOW
from tests.bench.result import Measurement, Series
from tests.bench.rounds import Values, in_turn
from tests.bench.setting import Scale, Setting
from tests.bench.usage import until
from tests.bench.waiting import WORKFLOW as WAIT

TITLE = "Outages: until all runs are terminal"
_SECONDS, _SUCCEEDED = ("seconds from the kill until terminal", "s"), ("succeeded", "runs")
_PATIENCE_SECONDS = 180.0
_PUBLISHED = "SELECT count(*) FROM orcheo_dispatch.dispatch WHERE state = 'published'"


def measure(setting: Setting, scale: Scale) -> Measurement:
    """Measure each outage with the default settings."""
    systems = {
        "kill -9 with 2 runs in flight": lambda: _killed(setting),
        "Redis killed and back empty, 34 runs queued": lambda: _flushed(setting),
        "Postgres killed and restarted, 80 runs": lambda: _restarted(setting),
    }
    series: list[Series] = in_turn(Scale(1, scale.quick), systems, warm_up=False)
    note = "One worker, one dispatcher, one Beat with the default settings; the killed worker is started again at once."
    return Measurement("outages", TITLE, tuple(series), notes=(note,))


def _killed(setting: Setting) -> Values:
    setting.empty()
    with setting.ours() as running:
        _fire(setting, setting.workflow(WAIT), 2)
        _until(lambda: setting.statuses().get("running") == 2, "run in flight")
        killed_at = time.monotonic()
        for each in running.processes:
            if each.group == "worker":
                each.process.send_signal(signal.SIGKILL)
        # Its supervisor starts it again.
        with setting.ours(beats=0, dispatchers=0):
            return _ended(setting, killed_at)


def _flushed(setting: Setting) -> Values:
    setting.empty()
    with setting.ours(workers=0):
        _fire(setting, setting.workflow(WORKFLOW), 34)
        _until(lambda: setting.value(_PUBLISHED) == 34, "message of each run")
        killed_at = time.monotonic()
        setting.redis.kill()
        setting.redis.start()
        with setting.ours(beats=0, dispatchers=0):
            return _ended(setting, killed_at)


def _restarted(setting: Setting) -> Values:
    setting.empty()
    with setting.ours():
        _fire(setting, setting.workflow(WAIT), 80)
        _until(lambda: setting.statuses().get("running", 0) >= 20, "20 runs in flight")
        killed_at = time.monotonic()
        setting.postgres.kill()
        setting.postgres.start()
        setting.connect()
        return _ended(setting, killed_at)


def _ended(setting: Setting, killed_at: float) -> Values:
    setting.until_terminal(seconds=_PATIENCE_SECONDS)
    return {_SECONDS: time.monotonic() - killed_at, _SUCCEEDED: float(setting.statuses().get("succeeded", 0))}


def _fire(setting: Setting, workflow_id: str, count: int) -> None:
    setting.api.fire_webhooks(workflow_id, [{"name": f"Ada {n}"} for n in range(count)])


def _until(look: Callable[[], bool], what: str) -> None:
    until(look, seconds=_PATIENCE_SECONDS, what=what)
