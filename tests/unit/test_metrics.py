"""Metrics: what Prometheus reads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import REGISTRY, Counter, values
from prometheus_client.parser import text_string_to_metric_families

from orcheo_dispatch import __version__
from orcheo_dispatch.shared.ledger.model import Outcome
from orcheo_dispatch.shared.metrics.model import BeatMetrics, DispatcherMetrics, Metrics, WorkerMetrics
from orcheo_dispatch.shared.settings.model import Settings

ROOT = Path(__file__).parents[2]
ID = UUID("00000000-0000-4000-8000-000000000001")
_UNITS = ("_total", "_seconds", "_runs", "_info", "_in_flight", "_silent", "_up", "_maintenance")


def _settings(**fields: Any) -> Settings:
    return Settings.load(postgres_dsn="postgresql://x", **{"health_port": 9100, **fields})


def _read(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = metrics.read()[0].decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _value(metrics: Metrics, name: str, **labels: str) -> float:
    return _read(metrics)[f"orcheo_dispatch_{name}", tuple(sorted(labels.items()))]


@pytest.fixture
def dispatcher() -> DispatcherMetrics:
    return DispatcherMetrics(_settings(), ID)


@pytest.fixture
def worker() -> WorkerMetrics:
    return WorkerMetrics(_settings(), ID)


def test_runs_are_counted_by_outcome_and_trigger(worker: WorkerMetrics) -> None:
    worker.run_settled(Outcome.SUCCEEDED, "webhook", 0.2)
    worker.run_settled(Outcome.TIMED_OUT, "cron", 3600)
    assert _value(worker, "runs_settled_total", outcome="succeeded", trigger="webhook") == 1
    assert _value(worker, "runs_settled_total", outcome="timed_out", trigger="cron") == 1
    assert _value(worker, "runs_settled_total", outcome="failed", trigger="webhook") == 0
    assert _value(worker, "run_running_seconds_count") == 2
    assert _value(worker, "run_running_seconds_bucket", le="0.25") == 1


def test_trigger_that_nobody_named_is_another() -> None:
    metrics = WorkerMetrics(_settings(triggers="*, nightly import"), ID)
    metrics.run_settled(Outcome.FAILED, 'x"} 1\nfake 1', 1)
    metrics.run_settled(Outcome.FAILED, "nightly import", 1)
    assert _value(metrics, "runs_settled_total", outcome="failed", trigger="other") == 1
    assert _value(metrics, "runs_settled_total", outcome="failed", trigger="nightly import") == 1
    assert _value(metrics, "runs_settled_total", outcome="failed", trigger="webhook") == 0
    assert "fake" not in metrics.read()[0].decode()


def test_dispatcher_counts_what_a_poll_did(dispatcher: DispatcherMetrics) -> None:
    dispatcher.polled("succeeded", 0.004)
    dispatcher.claimed(3)
    dispatcher.published(2)
    dispatcher.released(1, "broker_away")
    dispatcher.extended(4)
    dispatcher.reaped(lost=2, requeued=1)
    dispatcher.room(97)
    dispatcher.hinted("run")
    dispatcher.ticked()
    dispatcher.beat_is_silent(True)
    dispatcher.consumer_stalled()
    dispatcher.broker_failed()
    dispatcher.database_failed()
    assert _value(dispatcher, "polls_total", result="succeeded") == 1
    assert _value(dispatcher, "poll_seconds_bucket", le="0.005") == 1
    assert _value(dispatcher, "runs_claimed_total") == 3
    assert _value(dispatcher, "runs_published_total") == 2
    assert _value(dispatcher, "claims_released_total", reason="broker_away") == 1
    assert _value(dispatcher, "claims_extended_total") == 4
    assert _value(dispatcher, "runs_reaped_total", outcome="lost") == 2
    assert _value(dispatcher, "runs_reaped_total", outcome="requeued") == 1
    assert _value(dispatcher, "room_runs") == 97
    assert _value(dispatcher, "hints_total", kind="run") == 1
    assert _value(dispatcher, "ticks_received_total") == 1
    assert _value(dispatcher, "beat_silent") == 1
    assert _value(dispatcher, "consumer_stalls_total") == 1
    assert _value(dispatcher, "broker_errors_total") == 1
    assert _value(dispatcher, "database_errors_total") == 1


def test_worker_counts_what_it_does(worker: WorkerMetrics) -> None:
    worker.message_taken("malformed")
    worker.was_pending(12)
    worker.was_queued(0.012)
    worker.capacity(32)
    worker.beaten(succeeded=False)
    worker.loop_lag(2.5)
    worker.loop_blocked()
    worker.runner_lost("killed")
    worker.settle_was_stale()
    worker.consumer_stalled()
    assert _value(worker, "messages_total", result="malformed") == 1
    assert _value(worker, "run_pending_seconds_sum") == 12
    assert _value(worker, "run_queued_seconds_bucket", le="0.025") == 1
    assert _value(worker, "capacity_runs") == 32
    assert _value(worker, "heartbeats_total", result="failed") == 1
    assert _value(worker, "loop_lag_seconds") == 2.5
    assert _value(worker, "loop_blocks_total") == 1
    assert _value(worker, "runners_lost_total", how="killed") == 1
    assert _value(worker, "stale_settles_total") == 1
    assert _value(worker, "consumer_stalls_total") == 1


def test_closed_metrics_take_all_and_keep_nothing(worker: WorkerMetrics) -> None:
    worker.close()
    worker.message_taken("begun")
    worker.close()
    assert _value(worker, "messages_total", result="begun") == 0


def test_run_is_in_flight_until_it_ends(worker: WorkerMetrics) -> None:
    worker.run_begun()
    assert _value(worker, "runs_in_flight") == 1
    worker.run_ended()
    assert _value(worker, "runs_in_flight") == 0


def test_clock_that_went_back_makes_no_negative_time(worker: WorkerMetrics) -> None:
    worker.was_queued(-0.5)
    assert _value(worker, "run_queued_seconds_sum") == 0


def test_beat_counts_its_ticks() -> None:
    metrics = BeatMetrics(_settings(), ID)
    metrics.tick_sent()
    assert _value(metrics, "ticks_sent_total") == 1


@pytest.mark.parametrize(
    ("kind", "metrics"), [("beat", BeatMetrics), ("dispatcher", DispatcherMetrics), ("worker", WorkerMetrics)]
)
def test_process_says_what_it_is_and_what_it_takes(kind: str, metrics: type[Metrics]) -> None:
    made = metrics(_settings(), ID)
    assert _value(made, "process_info", kind=kind, version=__version__, id=str(ID)) == 1
    names = {name for name, _ in _read(made)}
    assert {"process_resident_memory_bytes", "process_open_fds", "python_info", "python_gc_collections_total"} <= names


@pytest.mark.parametrize("metrics", [BeatMetrics, DispatcherMetrics, WorkerMetrics])
def test_names_follow_the_conventions(metrics: type[Metrics]) -> None:
    text = metrics(_settings(), ID).read()[0].decode()
    declared = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    ours = [(name, kind) for name, kind in declared if not name.startswith(("process_", "python_"))]
    assert [name for name, _ in ours if not name.startswith("orcheo_dispatch_")] == []
    assert [name for name, kind in ours if (kind == "counter") != name.endswith("_total")] == []
    assert [name for name, _ in ours if not name.endswith(_UNITS)] == []
    assert "_created" not in text


def test_two_in_one_process_keep_apart_and_off_the_default_registry(worker: WorkerMetrics) -> None:
    other = WorkerMetrics(_settings(), ID)
    worker.message_taken("begun")
    assert _value(other, "messages_total", result="begun") == 0
    assert not [metric.name for metric in REGISTRY.collect() if metric.name.startswith("orcheo")]


def test_nothing_is_kept_where_no_port_is_set() -> None:
    metrics = WorkerMetrics(_settings(health_port=0), ID)
    metrics.run_settled(Outcome.SUCCEEDED, "webhook", 1)
    metrics.run_begun()
    metrics.loop_lag(1)
    assert metrics.read()[0] == b""
    metrics.close()


def test_nothing_is_imported_where_no_port_is_set() -> None:
    script = """
import sys, uuid
from orcheo_dispatch.shared.metrics.model import DispatcherMetrics
from orcheo_dispatch.shared.settings.model import Settings
DispatcherMetrics(Settings.load(postgres_dsn="postgresql://x"), uuid.uuid4()).claimed(1)
print("prometheus_client" in sys.modules)
"""
    assert _run(script) == "False\n"


def test_directory_of_somebody_else_is_not_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A workflow's own code may use prometheus_client too, in its own way."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    class_before = values.ValueClass
    metrics = WorkerMetrics(_settings(), ID)
    metrics.message_taken("begun")
    assert _value(metrics, "messages_total", result="begun") == 1
    metrics.close()
    assert os.environ["PROMETHEUS_MULTIPROC_DIR"] == str(tmp_path)
    assert values.ValueClass is class_before
    assert list(tmp_path.iterdir()) == []


def test_values_are_in_memory_whatever_the_environment_says(tmp_path: Path) -> None:
    script = """
import os, uuid
from orcheo_dispatch.shared.metrics.model import WorkerMetrics
from orcheo_dispatch.shared.settings.model import Settings
metrics = WorkerMetrics(Settings.load(postgres_dsn="postgresql://x", health_port=9100), uuid.uuid4())
metrics.message_taken("begun")
print(b'messages_total{result="begun"} 1.0' in metrics.read()[0], os.listdir(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
"""
    assert _run(script, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) == "True []\n"


def test_metrics_of_a_workflow_do_not_show_among_ours(worker: WorkerMetrics) -> None:
    theirs = Counter("workflow_of_somebody", "Not ours.", registry=None)
    theirs.inc()
    assert b"workflow_of_somebody" not in worker.read()[0]


def _run(script: str, **environment: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout
