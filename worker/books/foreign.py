"""Check that rows from a runner belong to its run: workflow code can write to the socket of its runner."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from orcheo_dispatch.worker.books.rows import Rows

FOREIGN_ROWS = "ForeignRows"
"""A row belongs to another run than the one that it was sent for."""
MALFORMED_ROWS = "MalformedRows"
"""A table that must not be written, a row that is not a JSON object, or a number of contents that does not match."""


class _OfExecution(msgspec.Struct):
    execution_id: str


class _OfThread(msgspec.Struct):
    thread_id: str


# Like jsonb, each decoder reads a whole text: one object, in which the last of duplicate keys counts.
_execution = msgspec.json.Decoder(_OfExecution)
_thread = msgspec.json.Decoder(_OfThread)
_EXECUTIONS = ("records", "changes", "steps")
_THREADS: Mapping[str, bool] = {
    "blobs": True,
    "checkpoints": False,
    "writes": True,
    "forgotten": False,
    "forgotten_blobs": False,
    "forgotten_writes": False,
}
"""Whether each row of a table has contents. If one were missing, contents of other runs would take its place."""


def refusal_of(rows: Rows, run_id: str) -> str | None:
    """Return why these rows must not be written for this run; None if they may be written."""
    if not rows.contents.keys() <= rows.texts.keys():
        return MALFORMED_ROWS
    try:
        for table, texts in rows.texts.items():
            if len(rows.contents.get(table, ())) != (len(texts) if _THREADS.get(table) else 0):
                return MALFORMED_ROWS
            if table in _EXECUTIONS:
                owners = {_execution.decode(text).execution_id for text in texts}
            elif table in _THREADS:
                owners = {_thread.decode(text).thread_id for text in texts}
            else:
                return MALFORMED_ROWS
            if owners - {run_id}:
                return FOREIGN_ROWS
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return MALFORMED_ROWS
    return None
