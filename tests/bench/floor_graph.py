"""CPU that LangGraph takes for the trivial workflow: `python -m tests.bench.floor_graph once|anew COUNT`."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any


async def main(how: str, count: int) -> float:
    """Return the milliseconds of CPU a run, the first runs left out."""
    make: Callable[[], Any] = importlib.import_module("orcheo_dispatch.ops.demo.greet").build
    kept = make().compile()
    began = 0.0
    for number in range(-10, count):
        if number == 0:
            began = time.process_time()
        graph = kept if how == "once" else make().compile()
        await _run(graph)
    return 1000 * (time.process_time() - began) / count


async def _run(graph: Any) -> None:
    inputs = {"body": {"name": "Ada"}}
    state: dict[str, Any] = {"inputs": inputs, "node_results": {}, "messages": [], "workspace_id": None, "config": {}}
    async for _ in graph.astream(state, stream_mode="updates", subgraphs=True):
        pass


if __name__ == "__main__":
    milliseconds = asyncio.new_event_loop().run_until_complete(main(sys.argv[1], int(sys.argv[2])))
    print(json.dumps({"milliseconds": milliseconds}))
