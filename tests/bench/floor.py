"""The floor: what is left of a run when only Postgres' commits, or only LangGraph's own work, counts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import psycopg

from orcheo_dispatch.ops.sandbox.orcheo_environment import process_environment
from tests.bench import runs
from tests.bench.result import Curve, Measurement, Series
from tests.bench.rounds import Values, in_turn
from tests.bench.setting import ROOT, Scale, Setting
from tests.bench.usage import Used

TITLE = "The floor: commits alone, and LangGraph alone"
COMMITS = "Postgres, two commits a run on two connections"
_BATCHES = (1, 10, 100)
_RATE, _CPU = ("rate", "runs/s"), ("CPU, postgres", "ms/run")
_GRAPH_SECONDS = 120.0

# No ledger, no fence: just the row of the run, moved twice.
_BEGIN = """
UPDATE workflow_runs SET status = 'running', updated_at = now(), payload = payload || '{"status": "running"}'
 WHERE id = ANY(%s) AND status = 'pending'
"""
_SETTLE = """
UPDATE workflow_runs SET status = 'succeeded', updated_at = now(),
       payload = payload || '{"status": "succeeded", "output_payload": {}}'
 WHERE id = ANY(%s) AND status = 'running'
"""


def measure(setting: Setting, scale: Scale) -> Measurement:
    """Measure commits by batches of some sizes, and LangGraph with a graph compiled once and built anew."""
    count = scale.size(2_000, 100)
    with setting.without_api():
        series: list[Series] = []
        for batch in _BATCHES:
            series += in_turn(scale, {COMMITS: partial(_commits, setting, count, batch)}, at=batch)
        graphs = {
            "LangGraph, graph compiled once": lambda: _graph("once", scale.size(500, 20)),
            "LangGraph, graph built for each run": lambda: _graph("anew", scale.size(500, 20)),
        }
        # The least varied of all figures, and most of its time is imports.
        series += in_turn(replace(scale, rounds=1), graphs, warm_up=False)
    note = (
        f"{count:,} rows of `workflow_runs`, each moved from pending to running to succeeded by two plain `UPDATE`, so "
        "many rows a commit as the table says: no ledger, no fence, no Redis, no worker. LangGraph: the trivial "
        "workflow in a process of its own, one run after the other, without database, checkpoint, history or Orcheo's "
        "worker; the nodes are Orcheo's."
    )
    curve = Curve("floor", "Commits alone: runs a second by rows a commit", _RATE[0], "rows a commit", log_x=True)
    return Measurement("floor", TITLE, tuple(series), (), (curve,), (note,))


def _commits(setting: Setting, count: int, batch: int) -> Values:
    setting.empty()
    runs.insert(setting, count)
    ids = [row["id"] for row in setting.rows("SELECT id FROM workflow_runs ORDER BY created_at")]
    halves = (ids[::2], ids[1::2])
    with ThreadPoolExecutor(len(halves)) as pool:
        used, began = Used(setting.server_groups()), time.perf_counter()
        list(pool.map(lambda half: _move(setting.postgres.url, half, batch), halves))
        seconds = time.perf_counter() - began
        used.stop()
    return {_RATE: count / seconds, _CPU: 1000 * used.cpu["postgres"] / count}


def _move(dsn: str, ids: list[str], batch: int) -> None:
    with psycopg.connect(dsn, application_name="bench", autocommit=True) as connection:
        for start in range(0, len(ids), batch):
            for statement in (_BEGIN, _SETTLE):
                connection.execute(statement, (ids[start : start + batch],), prepare=True)


def _graph(how: str, count: int) -> Values:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.bench.floor_graph", how, str(count)],
        env=process_environment({"PYTHONPATH": str(ROOT)}),
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
        timeout=_GRAPH_SECONDS,
    )
    return {("CPU, worker", "ms/run"): float(json.loads(done.stdout)["milliseconds"])}
