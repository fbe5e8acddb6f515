"""Nodes of Orcheo that look asynchronous and block their event loop: which they are, and how the log names them."""

from __future__ import annotations

import re
import socket
from pathlib import Path

from tests.stock.blocking import blocking_nodes
from tests.support.database.databases import Database
from tests.support.database.runs import all_ended, insert_runs, read_run
from tests.support.processes.processes import ROOT, Stack, until

_ROW = re.compile(r"^\| `(\w+Node)` \| (.+?) \|$", re.MULTILINE)


def test_nodes_that_block_are_those_that_are_documented() -> None:
    page = (ROOT / "docs" / "differences.md").read_text()
    assert dict(_ROW.findall(page)) == blocking_nodes()
    assert blocking_nodes()["MongoDBFindNode"] == "MongoDB's synchronous driver"


def test_node_that_blocks_the_loop_is_named_with_its_class(database: Database, redis_url: str, tmp_path: Path) -> None:
    stack = Stack(database, redis_url, tmp_path / "side_effects")
    with (
        # It accepts connections and never says a word.
        socket.create_server(("127.0.0.1", 0)) as silent,
        stack.running("worker", ORCHEO_WORKER_EXECUTOR="tests.stock.blocked:play") as worker,
        stack.running("dispatcher"),
    ):
        where = f"mongodb://127.0.0.1:{silent.getsockname()[1]}/?serverSelectionTimeoutMS=3500"
        for graph, named in {
            "node": "node=unread node_type=MongoDBFindNode at=",
            "subgraph": "node=unread node_type=MongoDBFindNode at=",
            "function": "node=sleeper at=",
        }.items():
            inputs = {"graph": graph, "mongodb": where, "title": "swordfish"}
            (run_id,) = insert_runs(database, inputs=inputs)
            until(lambda: all_ended(database), what=f"the run with {graph} has ended")
            (line,) = (line for line in worker.lines if "loop_blocked" in line and f"run_id={run_id}" in line)
            assert f"workflow_id={read_run(database, run_id)['workflow_id']}" in line
            assert named in line
            assert "swordfish" not in line
