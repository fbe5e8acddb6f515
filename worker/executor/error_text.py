"""Make the text of a run's error, as it is stored in the run, its trace and its checkpoint."""

from __future__ import annotations

from orcheo_dispatch.shared.text.raised import class_name, said_by
from orcheo_dispatch.shared.text.redaction import redact
from orcheo_dispatch.worker.executor.payload import storable_text

MAX_CHARACTERS = 20_000


def error_text(error: BaseException) -> str:
    """Return the text of the error, or its class if it has none: redacted, cut and storable. Never raises.

    Takes no longer than `said_by`, whatever the workflow's own class does.
    """
    return storable_text(redact(said_by(error), MAX_CHARACTERS) or class_name(error))
