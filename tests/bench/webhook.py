"""Measurement 8: what a webhook takes from the caller's side: the API alone, with our stack idle, and with it busy."""

from __future__ import annotations

import statistics
import time

import httpx

from orcheo_dispatch.ops.demo import WORKFLOW
from tests.bench.arrivals import Template, background
from tests.bench.result import Curve, Measurement, Series, Target, ratios
from tests.bench.rounds import Values, say
from tests.bench.setting import Scale, Setting

TITLE = "Webhook latency"
ALONE, IDLE, BUSY = "API alone", "orcheo-dispatch idle beside it", "orcheo-dispatch at half load beside it"
_WORKERS = 2
_P50, _P95 = ("p50", "ms"), ("p95", "ms")
_PAUSE_SECONDS = 0.04
"""Between an answer and the next request: by then the run that it made has ended, so that the stack is idle again."""
_SETTLE_SECONDS = 2
_HTTP_TIMEOUT_SECONDS = 30.0
_COUNT = "SELECT count(*) FROM workflow_runs WHERE status NOT IN ('pending', 'running')"


def measure(setting: Setting, scale: Scale) -> Measurement:
    """Measure all three in turn, round by round; our processes are started anew in each."""
    workflow_id = setting.workflow(WORKFLOW)
    setting.empty()
    template = Template(setting.api, setting.postgres.url, workflow_id)
    url = f"{setting.api.url}/api/workflows/{workflow_id}/triggers/webhook"
    count = scale.size(120, 20)
    rate = _capacity(setting, template, url, scale) / 2
    say(f"  half load is {rate:.0f} runs a second")
    found: dict[str, list[Values]] = {ALONE: [], IDLE: [], BUSY: []}

    def note(system: str) -> None:
        time.sleep(scale.size(_SETTLE_SECONDS, 1))
        found[system].append(_requests(url, count))
        say(f"  {system}: {found[system][-1]}")

    for _ in range(scale.rounds):
        setting.empty()
        note(ALONE)
        setting.empty()
        with setting.ours(workers=_WORKERS), template.inserting() as insert:
            note(IDLE)
            setting.until_terminal()
            setting.forget_runs()
            with background([insert], rate=rate):
                note(BUSY)
    series = [
        Series(system, metric, unit, tuple(each[metric, unit] for each in rounds))
        for system, rounds in found.items()
        for metric, unit in (_P50, _P95)
    ]
    return _measurement(series, rate)


def _requests(url: str, count: int) -> Values:
    """Post one after the other on one connection, with pauses; return what the requests took."""
    milliseconds = []
    with httpx.Client(timeout=_HTTP_TIMEOUT_SECONDS, trust_env=False) as client:
        client.post(url, json={"name": "Ada"}).raise_for_status()
        for _ in range(count):
            time.sleep(_PAUSE_SECONDS)
            began = time.perf_counter()
            client.post(url, json={"name": "Ada"}).raise_for_status()
            milliseconds.append(1000 * (time.perf_counter() - began))
    return {_P50: statistics.median(milliseconds), _P95: statistics.quantiles(milliseconds, n=20)[-1]}


def _capacity(setting: Setting, template: Template, url: str, scale: Scale) -> float:
    """Return how many runs a second our stack ends where enough are pending; it and the API are warm then."""
    count = scale.size(400, 50)
    with setting.ours(workers=_WORKERS), template.inserting() as insert:
        _requests(url, scale.size(50, 5))
        setting.until_terminal()
        before, began = setting.value(_COUNT), time.monotonic()
        for _ in range(count):
            insert()
        setting.until_terminal()
        return float(setting.value(_COUNT) - before) / (time.monotonic() - began)


def _measurement(series: list[Series], rate: float) -> Measurement:
    found = Measurement("webhook", TITLE, tuple(series))
    alone = found.values(ALONE, _P50[0])
    idle = ratios(found.values(IDLE, _P50[0]), alone)
    beside = [
        Series(name, f"{metric}, of the API alone", "times", _pairs(found, name, metric))
        for name in (IDLE, BUSY)
        for metric in (_P50[0], _P95[0])
    ]
    return Measurement(
        found.name,
        found.title,
        (*found.series, *beside),
        targets=(Target("p50 with our stack idle, of the API alone", idle, 1.05, "times", at_least=False),),
        curves=(Curve("webhook", "What a webhook takes", _P50[0]),),
        notes=(_NOTE.format(rate=rate),),
    )


def _pairs(found: Measurement, name: str, metric: str) -> tuple[float, ...]:
    return tuple(
        beside / alone for beside, alone in zip(found.values(name, metric), found.values(ALONE, metric), strict=True)
    )


_NOTE = (
    "Requests one after the other on one connection that is kept, from a table without runs, with pauses of "
    f"{1000 * _PAUSE_SECONDS:.0f} ms after each answer. Alone, nothing of ours runs and the runs stay pending. Idle, "
    f"our stack ({_WORKERS} workers) has nothing to do but the run that the last request made. At half load "
    "{rate:.0f} runs a second, half of what it ends, are inserted besides, without the API. Our processes are started "
    "anew in each round."
)
