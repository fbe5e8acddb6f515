"""Procrastinate's side: `procrastinate --app tests.bench.peers.procrastinate_app.app worker`."""

from __future__ import annotations

import os
from typing import Any

from procrastinate import App, PsycopgConnector

app = App(
    connector=PsycopgConnector(
        conninfo=os.environ["BENCH_DSN"], max_size=int(os.environ.get("BENCH_CONNECTIONS", "10"))
    )
)


@app.task(name="noop")  # type: ignore[untyped-decorator]
async def noop(**_inputs: Any) -> None:
    """Do nothing."""
