"""Ids of traces, links to callers, and steps: what is derived, and what is refused."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

import pytest

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.runs import Run
from orcheo_dispatch.shared.logs.secret_names import secrets_of_environment
from orcheo_dispatch.shared.traces.ids import SpanAddress, claim_span_id, read_traceparent, trace_id_of
from orcheo_dispatch.shared.traces.runs import RunTraces
from orcheo_dispatch.shared.traces.variables import check_variables

_PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_ADDRESS = SpanAddress(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331)


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.spans: dict[str, dict[str, Any]] = {}

    def samples(self, run_id: str) -> bool:
        return run_id != "not sampled"

    def put(self, name: str, claim: Claim, **fields: Any) -> None:
        self.spans[name] = fields

    def stop(self) -> None:
        pass


def _run(inputs: Mapping[str, Any] | None = None, *, triggered_by: str = "webhook", run_id: str = "r") -> Run:
    return Run(run_id, 7, 1, "workflow", "version", "workspace", triggered_by, inputs or {}, {})


def _execute(run: Run, *rows: str) -> dict[str, Any]:
    kept = Kept()
    trace = RunTraces(kept).begun(run, time.monotonic())
    assert trace is not None
    for row in rows:
        trace.stepped([row])
    trace.settled(how="succeeded", outcome="succeeded", ended_at=time.monotonic())
    return kept.spans["execute"]


def test_ids_are_those_of_the_documentation() -> None:
    """Processes of other releases must derive the same ones."""
    assert f"{trace_id_of('5f0c2a9e'):032x}" == "e03e86aedd4d122af5c82faacedfe11e"
    assert f"{claim_span_id(Claim('5f0c2a9e', 7)):016x}" == "15c2de4e3049e9b6"


def test_trace_ids_have_random_bits_where_samplers_look() -> None:
    """A UUID has fixed bits there: a tenth of the runs would be all of them, or none."""
    halves = [(trace_id_of(str(uuid.uuid4())) & (2**64 - 1)) / 2**64 for _ in range(500)]
    assert 0.35 < sum(half < 0.5 for half in halves) / len(halves) < 0.65


@pytest.mark.parametrize("text", [_PARENT, f" {_PARENT}", f"01{_PARENT[2:]}-later-versions-add-fields"])
def test_traceparent_is_read(text: str) -> None:
    assert read_traceparent(text) == _ADDRESS


@pytest.mark.parametrize(
    "text",
    [
        None,
        7,
        "",
        _PARENT.upper(),
        f"ff{_PARENT[2:]}",
        _PARENT[:-1],
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
        _PARENT + "-" + "x" * 1000,
    ],
)
def test_what_is_no_traceparent_is_no_link(text: object) -> None:
    assert read_traceparent(text) is None
    assert _execute(_run({"headers": {"traceparent": text}}))["link"] is None


def test_only_headers_of_a_webhook_link() -> None:
    inputs = {"headers": {"traceparent": _PARENT}}
    assert _execute(_run(inputs))["link"] == _ADDRESS
    assert _execute(_run(inputs, triggered_by="cli"))["link"] is None
    assert _execute(_run({"headers": [_PARENT]}))["link"] is None


def test_steps_are_named_by_their_nodes_whatever_a_runner_sends() -> None:
    execute = _execute(
        _run(),
        '{"execution_id": "r", "at": "2026-01-01T00:00:00+00:00", "payload": {"a": {"secret": 1}, "__namespace": []}}',
        '{"at": "9999-12-31T23:59:59+00:00", "payload": {"b": null}}',
        '{"at": "0001-01-01T00:00:00", "payload": {"c": null}}',
        '{"at": "yesterday", "payload": {"refused": 1}}',
        '{"payload": "no update"}',
        "[" * 100_000,
        "not JSON",
        '{"payload": {"status": {}}}',
        '{"payload": {"' + "n" * 1000 + '": 1}}',
        '{"payload": {"status": "error", "error": "the secret"}}',
    )
    names = [name for name, _ in execute["events"]]
    assert names in (["a", "b", "c", "status", "n" * 200], ["a", "b", "status", "n" * 200])
    assert all(execute["begin"] <= at <= execute["end"] for _, at in execute["events"])


def test_run_that_is_not_sampled_makes_no_spans() -> None:
    assert RunTraces(Kept()).begun(_run(run_id="not sampled"), time.monotonic()) is None
    assert RunTraces(None).begun(_run(), time.monotonic()) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "grpc://collector:4317"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/not/there.pem"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096"),
    ],
)
def test_invalid_variable_is_named(name: str, value: str) -> None:
    check_variables({name: ""})
    with pytest.raises(SettingsError, match=r"OTEL_\w+(='.*' is| has an) invalid.*: expected "):
        check_variables({name: value})


def test_headers_of_the_exporter_are_secrets() -> None:
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20swordfish,x-key = hunter22"}
    assert set(secrets_of_environment(headers)) == {"Bearer swordfish", "hunter22"}
