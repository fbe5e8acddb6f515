"""The text of the error that a run ended with, as it goes into the run, its trace and its checkpoint."""

from __future__ import annotations

from shared.redaction import redact
from worker.runner.payload import storable_text

MAX_CHARACTERS = 20_000


def error_text(error: BaseException) -> str:
    """Return what the error says, or its class where it says nothing: redacted, cut and storable. Never raises."""
    try:
        return storable_text(redact(str(error), MAX_CHARACTERS)) or type(error).__name__
    except Exception:  # noqa: BLE001 - the workflow's own class may fail at its text
        return type(error).__name__
