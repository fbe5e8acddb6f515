"""Read the newest checkpoint of each namespace of runs that an earlier attempt has begun, so that they can continue."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from psycopg.rows import DictRow

from orcheo_dispatch.worker.books.postgres import Pool, fetch_all

GRAPH_CHECKSUM = "graph_checksum"
"""Key in the metadata of checkpoints that were stored step by step: the checksum of the run's own graph."""
NO_TASK, RESUME = "00000000-0000-0000-0000-000000000000", "__resume__"
"""Task and channel of the write in which LangGraph, and our function `answer`, store what a run is resumed with."""

# Rows as they are stored: nothing is decoded here. Values that a checkpoint refers to are in checkpoint_blobs, and what
# the tasks after it have written so far in checkpoint_writes.
_SELECT_HEADS = """
WITH head AS MATERIALIZED (
    SELECT DISTINCT ON (c.thread_id, c.checkpoint_ns) c.thread_id, c.checkpoint_ns, c.checkpoint_id,
           c.parent_checkpoint_id, c.checkpoint, c.metadata
      FROM checkpoints AS c
     WHERE c.thread_id = ANY (%(run_ids)s::text[])
     ORDER BY c.thread_id, c.checkpoint_ns, c.checkpoint_id DESC
)
SELECT h.thread_id, h.checkpoint_ns, h.checkpoint_id, h.parent_checkpoint_id, h.checkpoint::text AS checkpoint,
       h.metadata::text AS metadata, b.channels, b.versions, b.types, b.blobs,
       w.task_ids, w.places, w.task_paths, w.written_channels, w.written_types, w.written
  FROM head AS h
 CROSS JOIN LATERAL (
    SELECT array_agg(b.channel) AS channels, array_agg(b.version) AS versions, array_agg(b.type) AS types,
           array_agg(b.blob) AS blobs
      FROM jsonb_each_text(h.checkpoint -> 'channel_versions') AS v(channel, version)
      JOIN checkpoint_blobs AS b
        ON b.thread_id = h.thread_id AND b.checkpoint_ns = h.checkpoint_ns
       AND b.channel = v.channel AND b.version = v.version) AS b
 CROSS JOIN LATERAL (
    SELECT array_agg(w.task_id) AS task_ids, array_agg(w.idx) AS places, array_agg(w.task_path) AS task_paths,
           array_agg(w.channel) AS written_channels, array_agg(w.type) AS written_types, array_agg(w.blob) AS written
      FROM checkpoint_writes AS w
     WHERE w.thread_id = h.thread_id AND w.checkpoint_ns = h.checkpoint_ns AND w.checkpoint_id = h.checkpoint_id) AS w
"""


class Blob(msgspec.Struct, frozen=True, array_like=True):
    """A row of `checkpoint_blobs`: the value of a channel."""

    channel: str
    version: str
    type: str
    content: bytes | None


class PendingWrite(msgspec.Struct, frozen=True, array_like=True):
    """A row of `checkpoint_writes`: what a task after the checkpoint has written."""

    task_id: str
    place: int
    task_path: str
    channel: str
    type: str | None
    content: bytes


class Head(msgspec.Struct, frozen=True, array_like=True):
    """The newest checkpoint of one namespace of a run, with the rows that belong to it."""

    namespace: str
    checkpoint_id: str
    parent_id: str | None
    checkpoint: str
    """JSON text."""
    metadata: str
    """JSON text."""
    blobs: list[Blob]
    writes: list[PendingWrite]

    @property
    def is_of_a_step(self) -> bool:
        """Whether it was stored when a step of the run's own graph ended, by a run that could be resumed."""
        metadata = json.loads(self.metadata)
        return not self.namespace and isinstance(metadata, dict) and GRAPH_CHECKSUM in metadata

    @property
    def is_answered(self) -> bool:
        """Whether a person has answered the interrupt at which the run stopped here."""
        return any((each.task_id, each.channel) == (NO_TASK, RESUME) for each in self.writes)


async def read_heads(pool: Pool, run_ids: Sequence[str]) -> dict[str, list[Head]]:
    """Return the heads of these runs, by run. Raises Postgres' error, such as for tables that LangGraph changed."""
    heads: dict[str, list[Head]] = {}
    if run_ids:
        for row in await fetch_all(pool, _SELECT_HEADS, {"run_ids": [*run_ids]}):
            heads.setdefault(row["thread_id"], []).append(_head(row))
    return heads


def _head(row: DictRow) -> Head:
    return Head(
        row["checkpoint_ns"],
        row["checkpoint_id"],
        row["parent_checkpoint_id"],
        row["checkpoint"],
        row["metadata"],
        [Blob(*each) for each in _zipped(row, "channels", "versions", "types", "blobs")],
        [
            PendingWrite(*each)
            for each in _zipped(row, "task_ids", "places", "task_paths", "written_channels", "written_types", "written")
        ],
    )


def _zipped(row: DictRow, *columns: str) -> Iterator[Any]:
    return zip(*(row[column] or () for column in columns), strict=True)
