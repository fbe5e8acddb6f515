"""Where and with what the benchmark ran."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres, EmbeddedRedis
from tests.bench.setting import Setting

_PACKAGES = ("orcheo-dispatch", "orcheo-backend", "orcheo", "celery", "kombu", "psycopg", "procrastinate", "pgqueuer")
_COMMITS = 300
_SETTINGS = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_connections")


def versions(setting: Setting) -> dict[str, str]:
    """Return the versions of all that takes part."""
    found = {"Python": platform.python_version(), "PostgreSQL": EmbeddedPostgres.version()}
    found["Redis"] = EmbeddedRedis.version()
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine(setting: Setting) -> dict[str, str]:
    """Return cores, memory, load, the settings of Postgres that matter, and what one durable commit takes."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GB",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "Postgres settings": ", ".join(f"{name} {setting.value(f'SHOW {name}')}" for name in _SETTINGS),
        "commit": f"{_commit_seconds(setting) * 1000:.2f} ms",
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit_seconds(setting: Setting) -> float:
    """Return the mean time of a commit that writes one row, one after the other."""
    setting.rows("CREATE TABLE bench_commit (n int)")
    began = time.perf_counter()
    for _ in range(_COMMITS):
        setting.rows("INSERT INTO bench_commit VALUES (1)")
    seconds = (time.perf_counter() - began) / _COMMITS
    setting.rows("DROP TABLE bench_commit")
    return seconds
