"""Parse the header of a tick: the Beat that sent it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from orcheo_dispatch.shared.ledger.model import ProcessKind
from orcheo_dispatch.shared.ledger.processes import Process
from orcheo_dispatch.shared.text.plain import plain

_LONGEST_HOST, _LARGEST_PID = 255, 2**22


def beat_of(header: Any) -> Process | None:
    """Return the Beat that a tick's header names, or None if it names none."""
    try:
        # Anyone who can write to Redis can forge a tick: its contents must be storable, and operators see them.
        host, pid = plain(str(header["host"]), _LONGEST_HOST), int(header["pid"])
        return Process(ProcessKind.BEAT, id=UUID(header["id"]), host=host, pid=pid) if 0 < pid <= _LARGEST_PID else None
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError, RecursionError):
        return None
