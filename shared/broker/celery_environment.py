"""Environment variables that Celery and its libraries read directly, bypassing the settings of an app.

`CELERY_BROKER_URL` replaces the broker of every app in the process (celery#4284, open). Such variables are meant for
another application: they are ignored here, and one warning names them. Those that a workflow's own Celery may need
stay in the environment.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

OVERRULED = (
    "CELERY_BROKER_URL",
    "CELERY_BROKER_READ_URL",
    "CELERY_BROKER_WRITE_URL",
    "CELERY_RESULT_BACKEND",
    "CELERY_LOADER",
    "CELERY_CONFIG_MODULE",
    "DJANGO_SETTINGS_MODULE",
)
"""Celery reads these each time that it needs them; `orcheo_dispatch.shared.broker.celery_app.App` never reads them."""

REMOVED = (
    "REMAP_SIGTERM",
    "CELERY_CUSTOM_WORKER_POOL",
    "CELERY_WORKER_REVOKES_MAX",
    "CELERY_WORKER_REVOKE_EXPIRES",
    "CELERY_WORKER_SUCCESSFUL_MAX",
    "CELERY_WORKER_SUCCESSFUL_EXPIRES",
    "CELERY_TRACE_APP",
    "CELERY_BENCH",
    "CELERY_BENCH_EVERY",
    "C_BENCH",
    "C_BENCH_EVERY",
    "C_IMPDEBUG",
    "C_REMDEBUG",
    "C_STRICT_APP",
    "C_WARN_APP",
    "C_WNOCONF",
    "AUTOSCALE_KEEPALIVE",
    "DISABLE_TRACEBACKS",
    "FORKED_BY_MULTIPROCESSING",
    "KOMBU_DEBUG_POOL",
    "KOMBU_DISABLE_LIMIT_PROTECTION",
    "KOMBU_LOG_CHANNEL",
    "KOMBU_LOG_CONNECTION",
    "KOMBU_LOG_DEBUG",
    "MP_LOG",
    "PICKLE_PROTOCOL",
    "TIMER_DEBUG",
    "USE_FAST_LOCALS",
)
"""Celery reads these once, at import, so they are removed before. A non-numeric value could end the process."""

_removed: list[str] = []


def clean(environment: MutableMapping[str, str] = os.environ) -> None:
    """Remove the variables that Celery would read at import. Has no effect on modules that are already imported."""
    _removed.extend(name for name in REMOVED if environment.pop(name, None))


def ignored() -> list[str]:
    """Return the variables that are set for Celery but ignored by this process, in alphabetical order."""
    return sorted({*_removed, *(name for name in OVERRULED if os.environ.get(name))})
