"""Servers that speak the protocol of LangGraph's server: its own in memory, and Aegra on Postgres."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import httpx

from orcheo_dispatch.ops.sandbox.child import free_port
from tests.peers.environments import AEGRA, LANGGRAPH
from tests.peers.ground import Ground
from tests.peers.peer import WORKFLOWS, Peer, Worker, answers

_FLUSH_SECONDS = 11.0
_LOOK_SECONDS = 0.02


class _ServerPeer(Peer):
    ended = frozenset({"success", "error", "timeout", "interrupted"})
    health: ClassVar[str]

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self._folder = ground.folder / "server"
        self._ports: dict[str, int] = {}
        self._newest = ""
        """Role of the process that was started last: it is asked."""

    def submit(self, log: Path) -> str:
        thread_id = self._post("/threads", {})["thread_id"]
        run = self._post(f"/threads/{thread_id}/runs", {"assistant_id": "chain", "input": {"log": str(log)}})
        return f"{thread_id}/runs/{run['run_id']}"

    def status(self, run_id: str) -> str:
        try:
            answer = httpx.get(f"{self._url}/threads/{run_id}", timeout=10.0, trust_env=False)
        except httpx.TransportError:
            return "no answer"
        return str(answer.json()["status"]) if answer.is_success else f"HTTP {answer.status_code}"

    def _serve(self, role: str, command: list[str], variables: Mapping[str, str]) -> Worker:
        port = self._ports.setdefault(role, free_port())
        self._newest = role
        worker = self.launched(role, [*command, "--port", str(port)], {"PORT": str(port), **variables}, self._folder)
        worker.wait_until(lambda: answers(f"{self._url}{self.health}"))
        return worker

    def _configure(self, name: str) -> None:
        self._folder.mkdir(exist_ok=True)
        graphs = {"chain": f"{WORKFLOWS / 'langgraph_chain.py'}:graph"}
        (self._folder / name).write_text(json.dumps({"dependencies": ["."], "graphs": graphs}))

    def _post(self, path: str, body: Mapping[str, object]) -> dict[str, str]:
        answer = httpx.post(f"{self._url}{path}", json=body, timeout=30.0, trust_env=False)
        answer.raise_for_status()
        record: dict[str, str] = answer.json()
        return record

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self._ports[self._newest]}"


class LangGraphDev(_ServerPeer):
    """LangGraph's own server in memory. Its form on Postgres needs a licence and is not on the package index."""

    name = "LangGraph server, in memory"
    environment = LANGGRAPH
    shares_a_database = False
    health = "/ok"
    variables: ClassVar[Mapping[str, str]] = {}

    def start(self, role: str) -> Worker:
        self._configure("langgraph.json")
        command = ["langgraph", "dev", "--no-browser", "--no-reload", "--host", "127.0.0.1"]
        variables = {"LANGSMITH_TRACING": "false", "LANGGRAPH_CLI_NO_ANALYTICS": "1"}
        return self._serve(role, command, {**variables, **self.variables})


class LangGraphDevFlushed(LangGraphDev):
    """The same, killed after it wrote its state to disk, as it does every 10 s, while the third step was executed."""

    name = "LangGraph server, in memory, flushed"
    variables: ClassVar[Mapping[str, str]] = {"CHAIN_THIRD_STEP_SECONDS": "12"}

    def wait_in_step(self) -> None:
        began = time.time()
        deadline = time.monotonic() + _FLUSH_SECONDS
        state = self._folder / ".langgraph_api" / ".langgraph_ops.pckl"
        while not (state.exists() and state.stat().st_mtime > began):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{state.name} was not written within {_FLUSH_SECONDS:g} s")
            time.sleep(_LOOK_SECONDS)
        # The other files of the same flush.
        time.sleep(0.5)


class Aegra(_ServerPeer):
    """Aegra with its defaults: runs are tasks of the server's own process."""

    name = "Aegra"
    environment = AEGRA
    shares_a_database = False
    checkpoints = ("checkpoints", "checkpoint_writes", "checkpoint_blobs")
    runs = ("runs",)
    health = "/health"
    redis: ClassVar[bool] = False

    def start(self, role: str) -> Worker:
        self._configure("aegra.json")
        variables = {
            "DATABASE_URL": self.ground.dsn(role),
            "REDIS_BROKER_ENABLED": str(self.redis).lower(),
            "REDIS_URL": self.ground.redis_url,
        }
        return self._serve(role, ["aegra", "serve", "--host", "127.0.0.1"], variables)


class AegraRedis(Aegra):
    """Aegra with Redis: workers with leases of 30 s, looked through every 15 s."""

    name = "Aegra with Redis"
    shares_a_database = True
    redis = True
