"""A MongoDB on this machine: one that speaks its protocol and stores in SQLite."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from orcheo_dispatch.ops.sandbox.child import free_port
from tests.support.processes.processes import until

MISSING = (
    ""
    if importlib.util.find_spec("nx_27017")
    else "no MongoDB server: nx-27017 is not installed (pip install nx-27017)"
)


@contextmanager
def mongodb(folder: Path) -> Iterator[str]:
    """Start the server in memory and yield its connection string."""
    port = free_port()
    url = f"mongodb://127.0.0.1:{port}/"
    with (folder / "mongodb.log").open("w") as log:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "nx_27017.nx_27017", "--db", "memory", "--port", str(port)),
                *("--log-file", str(folder / "nx.log"), "--pid-file", str(folder / "nx.pid")),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
        )
        try:
            until(lambda: _answers(url), what="MongoDB answers")
            yield url
        finally:
            # It holds nothing that is worth the wait for its clients.
            server.kill()
            server.wait()


def _answers(url: str) -> bool:
    client: MongoClient[dict[str, object]] = MongoClient(url, serverSelectionTimeoutMS=200)
    with client:
        try:
            client.admin.command("ping")
        except PyMongoError:
            return False
    return True
