"""Ask a process for its health, for scripts and for container probes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.health.probe import LIVE, READY, ask
from orcheo_dispatch.shared.settings.values import read

_HOST, _PORT = "ORCHEO_HEALTH_HOST", "ORCHEO_HEALTH_PORT"
_TAKES = "a URL such as http://127.0.0.1:9461"


@dataclass(frozen=True, slots=True)
class Health:
    """Answer of one route: whether the process is healthy, and one line per check."""

    name: str
    ok: bool
    why: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints; these names are stable."""
        return {"name": self.name, "ok": self.ok, "why": self.why}


def ask_health(host: str, port: int, *, only_live: bool, timeout: float) -> list[Health]:
    """Ask whether the process is live and, unless `only_live`, whether it is ready. Never raises."""
    asked = {"live": LIVE} if only_live else {"live": LIVE, "ready": READY}
    return [_ask(name, host, port, path, timeout) for name, path in asked.items()]


def own_address(port: int | None) -> tuple[str, int]:
    """Return where the process of this environment answers, or one at `port` beside it.

    Needs no other setting, so that a probe does not need the DSN. Raises `SettingsError`.
    """
    host = read(_HOST, os.environ.get(_HOST, "")) or "127.0.0.1"
    if port is not None:
        return host, port
    text = read(_PORT, os.environ.get(_PORT, "")) or "0"
    if not text.isdecimal() or int(text) > 65_535:
        raise SettingsError.wrong(_PORT, text, "a port")
    if int(text) == 0:
        raise SettingsError(f"{_PORT} is not set, so the process answers nowhere: give --port or --url")
    return host, int(text)


def address_of(url: str) -> tuple[str, int]:
    """Return host and port of a URL; a path is of no matter. Raises `SettingsError`."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme != "http" or not host or parts.username is not None:
        # Not quoted: it may hold a password.
        raise SettingsError(f"--url has an invalid value: expected {_TAKES}")
    return host, port or 80


def _ask(name: str, host: str, port: int, path: str, timeout: float) -> Health:
    ok, answer = ask(host, port, path, timeout=timeout)
    try:
        checks = json.loads(answer)["checks"]
        why = [f"{check['name']}: {check['why']}" for check in checks if ok or not check["ok"]]
    except (ValueError, KeyError, TypeError):
        # No answer, or an answer of another process.
        return Health(name, ok=False, why=[" ".join(answer.split())[:200] or "an empty answer"])
    return Health(name, ok, why)
