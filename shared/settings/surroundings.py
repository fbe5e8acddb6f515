"""Detect containers, in which `localhost` is the container itself and not its host."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

_MARKS = ("/.dockerenv", "/run/.containerenv")
_VARIABLES = ("KUBERNETES_SERVICE_HOST", "container")
"""Kubernetes sets the first for each pod; Podman, LXC and systemd-nspawn the second, by systemd's convention."""


def in_container(environment: Mapping[str, str] = os.environ, marks: tuple[str, ...] = _MARKS) -> bool:
    """Return whether this process runs in a container, as far as can be detected."""
    return any(environment.get(name) for name in _VARIABLES) or any(Path(mark).exists() for mark in marks)


def is_local(address: str) -> bool:
    """Return whether a URL or DSN refers to this host over TCP: `localhost` or a loopback address."""
    return any(_is_loopback(host) for host in _hosts(address))


def _is_loopback(host: str) -> bool:
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _hosts(address: str) -> list[str]:
    if address.startswith(("postgres://", "postgresql://")) or "://" not in address:
        try:
            options = conninfo_to_dict(address)
        except ProgrammingError:
            return []
        return str(options.get("hostaddr") or options.get("host") or "").split(",")
    try:
        return [urlsplit(address).hostname or ""]
    except ValueError:
        return []
