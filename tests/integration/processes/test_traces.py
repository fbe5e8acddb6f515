"""Spans of runs, exported by real processes to a real collector, or to one that is down."""

from __future__ import annotations

import hashlib
import re
import signal
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from orcheo_dispatch.ops.sandbox.child import free_port
from orcheo_dispatch.shared.health.probe import METRICS, ask
from tests.support.database.databases import Database
from tests.support.database.runs import WORKFLOW_ID, WORKSPACE_ID, all_are, insert_runs, ledger
from tests.support.processes.processes import Stack, until
from tests.support.servers.collector import collecting, exports_to, port_that_hangs, port_that_refuses

_NAMES = {"claim", "publish", "begin", "execute", "settle"}
_SECRET = "xylophone-of-the-inputs"
_CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
_QUICK_SECONDS = 9.0
"""A worker without traces ends within about two seconds; the SDK alone would wait for 20 s."""


def test_spans_of_a_run_are_one_trace_across_processes(database: Database, stack: Stack) -> None:
    inputs = {"secret": _SECRET, "headers": {"traceparent": f"00-{_CALLER[0]}-{_CALLER[1]}-01"}}
    runs = insert_runs(database, 20, inputs=inputs)
    with collecting() as collector:
        stack.environment |= {**collector.variables, "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20of-tests"}
        with stack.running("worker") as worker, stack.running("dispatcher") as dispatcher:
            until(lambda: all(collector.of(run).keys() == _NAMES for run in runs), what="five spans of each run")
            for process in (dispatcher, worker):
                process.signal(signal.SIGTERM)
                assert process.exit_code() == 0
    assert len(collector.spans) == len(runs) * len(_NAMES)
    assert len({each.span_id for each in collector.spans}) == len(collector.spans)
    for run in runs:
        spans, fence = collector.of(run), ledger(database, run)["fence"]
        # As docs/traces.md has it: b2sum --length 128.
        assert {each.trace_id for each in spans.values()} == {hashlib.blake2b(run.encode(), digest_size=16).hexdigest()}
        claim = spans.pop("claim")
        assert claim.parent_id == ""
        assert {each.parent_id for each in spans.values()} == {claim.span_id}
        assert claim.attributes == {
            "orcheo.run.id": run,
            "orcheo.run.fence": fence,
            "orcheo.run.outcome": "claimed",
        }
        assert spans["publish"].attributes == {**claim.attributes, "orcheo.run.outcome": "published"}
        of_run = {
            "orcheo.run.id": run,
            "orcheo.run.fence": fence,
            "orcheo.workflow.id": WORKFLOW_ID,
            "orcheo.workspace.id": WORKSPACE_ID,
            "orcheo.run.attempt": 1,
        }
        for name, outcome in {"begin": "begun", "execute": "succeeded", "settle": "succeeded"}.items():
            assert spans[name].attributes == {**of_run, "orcheo.run.outcome": outcome}
        assert spans["execute"].links == [_CALLER]
        assert (spans["publish"].kind, spans["begin"].kind) == ("producer", "consumer")
        assert claim.begin <= claim.end <= spans["publish"].end
        assert spans["begin"].end == spans["execute"].begin
        assert spans["execute"].begin <= spans["execute"].end == spans["settle"].begin <= spans["settle"].end
        assert not any(each.failed for each in spans.values())
    # One statement claimed them all.
    assert len({each.begin for each in collector.spans if each.name == "claim"}) == 1
    services = {each.name: each.resource["service.name"] for each in collector.spans}
    assert (services["claim"], services["settle"]) == ("orcheo-dispatcher", "orcheo-worker")
    assert {each["authorization"] for each in collector.headers} == {"Bearer of-tests"}
    assert not any(_SECRET.encode() in body for body in collector.bodies)


def test_attempts_of_a_run_share_its_trace(database: Database, stack: Stack) -> None:
    """The second attempt has a claim of its own, and no text of the error is in the spans."""
    (run,) = insert_runs(database, inputs={"do": "fail", "text": _SECRET})
    with collecting() as collector:
        stack.environment |= collector.variables
        with stack.running("worker"), stack.running("dispatcher"):
            until(lambda: "settle" in collector.of(run), what="the run has failed")
            first = dict(collector.of(run))
            with stack.command("requeue", run) as command:
                assert command.exit_code() == 0
            until(
                lambda: sum(each.name == "settle" for each in collector.spans) == 2 and len(collector.spans) == 10,
                what="it has failed again",
            )
    again = collector.of(run)
    assert again["claim"].trace_id == first["claim"].trace_id
    assert again["claim"].span_id != first["claim"].span_id
    assert again["settle"].parent_id == again["claim"].span_id
    for spans in (first, again):
        assert spans["execute"].failed
        assert spans["execute"].attributes["orcheo.run.outcome"] == "failed"
        assert spans["settle"].attributes["orcheo.run.outcome"] == "failed"
    assert not any(_SECRET.encode() in body for body in collector.bodies)


def test_sampler_keeps_or_drops_whole_traces(database: Database, stack: Stack) -> None:
    runs = insert_runs(database, 40)
    with collecting() as collector:
        sampling = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}
        stack.environment |= {**collector.variables, **sampling}
        with stack.running("worker") as worker, stack.running("dispatcher") as dispatcher:
            until(lambda: all_are(database, "succeeded"), what="every run succeeded")
            for process in (dispatcher, worker):
                process.signal(signal.SIGTERM)
                assert process.exit_code() == 0
    sampled = [run for run in runs if collector.of(run)]
    assert 5 < len(sampled) < 35
    assert all(collector.of(run).keys() == _NAMES for run in sampled)


@pytest.mark.parametrize("fault", ["refuses", "hangs", "401", "503"])
def test_broken_collector_costs_spans_and_nothing_else(database: Database, stack: Stack, fault: str) -> None:
    port: AbstractContextManager[int] = nullcontext(0)
    if fault == "refuses":
        port = port_that_refuses()
    elif fault == "hangs":
        port = port_that_hangs()
    with port as number, collecting(int(fault) if fault.isdigit() else 200) as collector:
        # Small, so that it is full at once.
        queue = {"OTEL_BSP_MAX_QUEUE_SIZE": "8", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4"}
        stack.environment |= {**(exports_to(number) if number else collector.variables), **queue}
        insert_runs(database, 100)
        with stack.running("worker") as worker, stack.running("dispatcher") as dispatcher:
            until(lambda: all_are(database, "succeeded"), what="every run succeeded")
            worker.saw("spans_lost")
            dispatcher.saw("spans_lost")
            for process in (dispatcher, worker):
                began = time.monotonic()
                process.signal(signal.SIGTERM)
                assert process.exit_code() == 0
                assert time.monotonic() - began < _QUICK_SECONDS
    # Rationed, and neither the exporter's own lines nor an address are among them.
    for process in (dispatcher, worker):
        assert process.log.count("spans_lost") <= 2
        assert "opentelemetry" not in process.log
        assert "v1/traces" not in process.log


def test_collector_that_recovers_gets_spans_again(database: Database, stack: Stack) -> None:
    with collecting(401) as collector:
        stack.environment |= collector.variables
        port = free_port()
        with (
            stack.running("worker", ORCHEO_HEALTH_PORT=str(port)) as worker,
            stack.running("dispatcher", ORCHEO_DISPATCH_TRACES="off"),
        ):
            insert_runs(database, 1)
            worker.saw("spans_lost")
            assert "HTTP 401" in worker.log
            collector.status = 200
            (run,) = insert_runs(database, 1)
            until(lambda: len(collector.of(run)) == 3, what="three spans of the second run")
            worker.saw("span_export_recovered")
            until(lambda: sum(_counted(port).values()) == 6, what="each span is counted")
            counted = _counted(port)
    assert counted["exported"] == len(collector.spans) >= 3
    assert counted["failed"] >= 1
    assert counted["dropped"] == 0
    # Without the dispatcher's spans theirs are in the same trace.
    assert len({each.trace_id for each in collector.spans}) == 1


def _counted(port: int) -> dict[str, int]:
    metrics = ask("127.0.0.1", port, METRICS)[1]
    found = re.findall(r'^orcheo_dispatch_spans_total\{result="(\w+)"\} (\d+)', metrics, re.MULTILINE)
    return {result: int(spans) for result, spans in found}


@pytest.mark.parametrize("kind", ["dispatcher", "worker"])
@pytest.mark.parametrize(
    ("variables", "line"),
    [
        (
            {"ORCHEO_DISPATCH_TRACES": "yes"},
            "ORCHEO_DISPATCH_TRACES='yes' is invalid: expected 'off' or 'otlp'",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"},
            "OTEL_EXPORTER_OTLP_ENDPOINT has an invalid value: expected a URL such as http://collector:4318",
        ),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL='grpc' is invalid: expected 'http/protobuf'",
        ),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"},
            "OTEL_TRACES_SAMPLER_ARG='2' is invalid: expected a number from 0 to 1",
        ),
    ],
)
def test_wrong_value_is_named_in_one_line(stack: Stack, kind: str, variables: dict[str, str], line: str) -> None:
    with stack.command(kind, **{"ORCHEO_DISPATCH_TRACES": "otlp", **variables}) as process:
        assert process.exit_code() == 2
        process.finish()
        assert process.log.splitlines()[-1] == f"orcheo-dispatch: {line}"


@pytest.fixture
def without_opentelemetry(stack: Stack, tmp_path: Path) -> None:
    """Hide OpenTelemetry from our processes: a package of that name without anything in it comes first."""
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").touch()
    stack.environment["PYTHONPATH"] = f"{tmp_path}:{stack.environment['PYTHONPATH']}"


@pytest.mark.usefixtures("without_opentelemetry")
def test_runs_are_executed_without_the_package_if_traces_are_off(database: Database, stack: Stack) -> None:
    insert_runs(database, 3)
    with stack.running("worker"), stack.running("dispatcher"):
        until(lambda: all_are(database, "succeeded"), what="every run succeeded")


@pytest.mark.usefixtures("without_opentelemetry")
@pytest.mark.parametrize("kind", ["dispatcher", "worker"])
def test_missing_package_is_named_in_one_line(stack: Stack, kind: str) -> None:
    with stack.command(kind, ORCHEO_DISPATCH_TRACES="otlp") as process:
        assert process.exit_code() == 2
        process.finish()
        assert process.log.splitlines()[-1] == (
            "orcheo-dispatch: ORCHEO_DISPATCH_TRACES='otlp' is invalid: "
            "expected 'off' unless orcheo-dispatch[traces] is installed"
        )
