"""What a run leaves in the tables that Orcheo's API and LangGraph read, without what differs from run to run."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import ormsgpack

from tests.support.database.databases import Database
from tests.support.database.runs import everything, one

_RUN = "SELECT to_jsonb(r) AS row FROM workflow_runs AS r WHERE id = %s"
_HISTORY = "SELECT to_jsonb(h) AS row FROM execution_history AS h WHERE execution_id = %s"
_STEPS = "SELECT to_jsonb(s) AS row FROM execution_history_steps AS s WHERE execution_id = %s ORDER BY step_index"
_CHECKPOINTS = """
SELECT checkpoint_ns, checkpoint_id, checkpoint, metadata FROM checkpoints
 WHERE thread_id = %s ORDER BY checkpoint_ns = '' DESC, checkpoint_id DESC"""
_BLOBS = """
SELECT b.channel, b.version, b.type, b.blob
  FROM checkpoint_blobs AS b, jsonb_each_text(%s::jsonb) AS v(channel, version)
 WHERE b.thread_id = %s AND b.checkpoint_ns = '' AND b.channel = v.channel AND b.version = v.version
 ORDER BY b.channel"""
_WRITES = """
SELECT task_path, idx, channel, type, blob FROM checkpoint_writes
 WHERE thread_id = %s AND checkpoint_ns = '' AND checkpoint_id = %s ORDER BY task_path, channel, idx"""

# How a zone is written is part of what must be the same; PostgreSQL drops zeros at the end of a fraction.
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ]\d\d:\d\d:\d\d(?:\.\d+)?")
_UUID = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])"
)
_ELAPSED = re.compile(r'(?<="elapsed": )[\d.e-]+')
# LangGraph ends the number of a version with a random one.
_VERSION = re.compile(r"\b0{10,}(\d+)\.[\d.e+-]+")


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What a run has left. Ids are numbers in the order of their appearance, so that their relations are compared."""

    run: dict[str, Any]
    history: dict[str, Any] | None
    steps: list[dict[str, Any]]
    checkpoint: dict[str, Any] | None
    """The last one of the graph itself, whose values are the run's final state."""
    namespaces: list[str]
    """Of every checkpoint, without the ids in them."""


def leftovers(database: Database, run_id: str) -> Leftovers:
    """Return what a run has left."""
    histories = everything(database, _HISTORY, run_id)
    checkpoints = everything(database, _CHECKPOINTS, run_id)
    head = checkpoints[0] if checkpoints and not checkpoints[0]["checkpoint_ns"] else None
    return Leftovers(
        run=masked(one(database, _RUN, run_id)["row"]),
        history=masked(histories[0]["row"]) if histories else None,
        steps=masked([step["row"] for step in everything(database, _STEPS, run_id)]),
        checkpoint=masked(_whole(database, run_id, head)) if head else None,
        namespaces=sorted(_UUID.sub("<id>", row["checkpoint_ns"]) for row in checkpoints),
    )


def _whole(database: Database, run_id: str, head: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint with the values and the pending writes that belong to it."""
    versions = json.dumps(head["checkpoint"]["channel_versions"])
    blobs = everything(database, _BLOBS, versions, run_id)
    writes = everything(database, _WRITES, run_id, head["checkpoint_id"])
    return {
        "checkpoint": head["checkpoint"],
        "metadata": head["metadata"],
        "values": {blob["channel"]: _unpacked(blob) for blob in blobs},
        "writes": [{**write, "blob": _unpacked(write)} for write in writes],
    }


def _unpacked(row: dict[str, Any]) -> Any:
    """Return what LangGraph has packed as plain data: types of workflows cannot be imported here."""
    if row["type"] == "msgpack":
        return _unpack(bytes(row["blob"]))
    return [row["type"], repr(row["blob"] and bytes(row["blob"]))]


def _unpack(content: bytes) -> Any:
    return ormsgpack.unpackb(
        content, ext_hook=lambda code, inner: {"ext": code, "of": _unpack(inner)}, option=ormsgpack.OPT_NON_STR_KEYS
    )


def masked(found: Any) -> Any:
    """Return rows with times left out and ids numbered."""
    today = datetime.now(UTC).date()
    near = {str(today + timedelta(days=days)) for days in (-1, 0, 1)}
    numbers: dict[str, int] = {}
    text = _VERSION.sub(r"<version \1>", _ELAPSED.sub("0", json.dumps(found, default=repr)))
    text = _TIME.sub(lambda time: "<time>" if time[1] in near else time[0], text)
    return json.loads(_UUID.sub(lambda found: f"<id {numbers.setdefault(found[0], len(numbers))}>", text))
