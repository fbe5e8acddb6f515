"""Ask Orcheo's own workers over Redis: which are alive, what they execute, which runs their queue names."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import redis

from orcheo_dispatch.dispatcher.wakeups.hints import RUN_HINT
from orcheo_dispatch.shared.broker.app import HINT_QUEUE, broker_errors, connect, make_app, task_name
from orcheo_dispatch.shared.settings.model import Settings

_ANSWER_SECONDS = 2.0
_UNACKED = "unacked"
"""Where kombu keeps messages that a worker has taken and not acknowledged; Orcheo's does so when a run has ended."""
_PIECE = 1000


@dataclass(frozen=True, slots=True)
class StockWorkers:
    """Orcheo's workers that answered, and the runs that they say they hold."""

    names: tuple[str, ...]
    held: frozenset[str]


def ask_workers(settings: Settings, *, seconds: float = _ANSWER_SECONDS) -> StockWorkers:
    """Ask all of Orcheo's workers on this Redis what they hold. Raises `BrokerError`.

    One with a solo pool does not answer while it executes a run.
    """
    client = connect(settings.redis_url.get_secret_value())
    with broker_errors(), client:
        # One clear error, before Celery tries in its own ways.
        client.ping()
        inspect = make_app("orcheo-dispatch-adopt", settings, None).control.inspect(timeout=seconds)
        active: dict[str, Any] = inspect.active() or {}
        reserved: dict[str, Any] = (inspect.reserved() or {}) if active else {}
    tasks = [task for answer in (active, reserved) for each in answer.values() for task in each]
    held = {str(task["args"][0]) for task in tasks if task.get("name") == RUN_HINT and task.get("args")}
    return StockWorkers(tuple(sorted(active)), frozenset(held))


def pushed_runs(client: redis.Redis, *, most: int = 100_000) -> frozenset[str]:
    """Return the runs that the API's pushes in Redis name, the newest `most` messages at most. Raises `BrokerError`."""
    found: set[str] = set()
    with broker_errors():
        for start in range(0, most, _PIECE):
            messages: Any = client.lrange(HINT_QUEUE, start, start + _PIECE - 1)
            found.update(run_id for raw in messages if (run_id := _run_of(raw)))
            if len(messages) < _PIECE:
                break
        for _, raw in client.hscan_iter(_UNACKED, count=_PIECE):
            found.update(run_id for run_id in [_run_of_unacked(raw)] if run_id)
    return frozenset(found)


def _run_of(raw: bytes | str) -> str | None:
    """Return the run that a push names, or None where the message is no push."""
    if task_name(raw) != RUN_HINT:
        return None
    try:
        (run_id, *_), *_ = json.loads(base64.b64decode(json.loads(raw)["body"]))
    except (ValueError, TypeError, KeyError):
        return None
    return run_id if isinstance(run_id, str) else None


def _run_of_unacked(raw: bytes | str) -> str | None:
    try:
        return _run_of(json.dumps(json.loads(raw)[0]))
    except (ValueError, LookupError, TypeError):
        return None
