"""Alerts and dashboards ask for what is there: metrics that our processes expose, views that the database has."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.real.child import free_port
from shared.health import METRICS, ask
from tests.databases import Database
from tests.exposition import Exposed
from tests.processes import Stack, until
from tests.runs import all_ended, insert_runs

OPS = Path(__file__).parents[2] / "ops"
ALERTS = OPS / "prometheus" / "alerts.yml"
ALERT_TESTS = OPS / "prometheus" / "alerts.test.yml"
CONFIG = OPS / "prometheus" / "prometheus.yml"


def _rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _promtool(*arguments: str | Path) -> str:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: Debian's package prometheus has it")
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_metrics_of_alerts_are_exposed(stack: Stack, database: Database) -> None:
    insert_runs(database, 2)
    exposed = Exposed()
    with ExitStack() as processes:
        for kind in ("beat", "dispatcher", "worker"):
            port = free_port()
            processes.enter_context(stack.running(kind, ORCHEO_HEALTH_PORT=str(port)))
            if kind == "worker":
                until(lambda: all_ended(database), what="the end of all runs")
            exposed.add(_scraped(port))
    assert {rule["alert"]: exposed.missing(rule["expr"]) for rule in _rules() if exposed.missing(rule["expr"])} == {}


def test_rules_are_sound_and_fire_when_they_should() -> None:
    assert "SUCCESS" in _promtool("check", "rules", ALERTS)
    assert "SUCCESS" in _promtool("check", "config", CONFIG)
    assert "SUCCESS" in _promtool("test", "rules", ALERT_TESTS)


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    tests = {test["name"]: test for test in yaml.safe_load(ALERT_TESTS.read_text())["tests"]}
    (firing,) = tests["broken"]["promql_expr_test"]
    fired = {sample["labels"].partition('"')[2].removesuffix('"}') for sample in firing["exp_samples"]}
    assert fired == {rule["alert"] for rule in _rules()}
    assert [case["exp_samples"] for case in tests["well"]["promql_expr_test"]] == [[]]
    # Nothing fires there only because nothing is there.
    inputs = {entry["series"].partition("{")[0] for entry in tests["well"]["input_series"]}
    asked = {
        name for rule in _rules() for name in re.findall(r"\b(?:orcheo_dispatch_|process_)\w+|\bup\b", rule["expr"])
    }
    assert asked <= inputs


def test_every_alert_says_what_it_is_and_what_to_do() -> None:
    for rule in _rules():
        assert rule["labels"]["severity"] in {"critical", "warning"}, rule
        assert {"summary", "description"} <= set(rule["annotations"]), rule


def _scraped(port: int) -> str:
    answered, body = ask("127.0.0.1", port, METRICS)
    assert answered, body
    return body
