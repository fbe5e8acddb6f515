"""Alerts and dashboards ask for what is there: metrics that our processes expose, views that the database has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from orcheo_dispatch.ops.sandbox.child import free_port
from orcheo_dispatch.shared.health.probe import METRICS, ask
from tests.support import grafana
from tests.support.database.databases import Database
from tests.support.database.roles import Kind
from tests.support.database.runs import all_ended, insert_runs
from tests.support.database.volume import fill
from tests.support.processes.exposition import Exposed
from tests.support.processes.processes import Stack, until

OPS = Path(__file__).parents[3] / "ops"
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


def test_metrics_of_alerts_and_panels_are_exposed(stack: Stack, database: Database) -> None:
    insert_runs(database, 2)
    exposed = Exposed()
    with ExitStack() as processes:
        for kind in ("beat", "dispatcher", "worker"):
            port = free_port()
            processes.enter_context(stack.running(kind, ORCHEO_HEALTH_PORT=str(port)))
            if kind == "worker":
                until(lambda: all_ended(database), what="the end of all runs")
            exposed.add(_scraped(port))
    asked = [(rule["alert"], rule["expr"]) for rule in _rules()]
    asked += [(title, target["expr"]) for title, target in _targets("${prometheus}")]
    assert len(asked) > 50
    assert {name: exposed.missing(expression) for name, expression in asked if exposed.missing(expression)} == {}


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


# --- Grafana

DASHBOARD = OPS / "grafana" / "orcheo-dispatch.json"
PROVISIONING = OPS / "grafana" / "provisioning"
_PANELS = {"row", "stat", "table", "timeseries"}
_SOURCES = {"${postgres}": "grafana-postgresql-datasource", "${prometheus}": "prometheus"}
_MACROS = {
    r"\$__timeFilter\((\w+)\)": r"\1 BETWEEN now() - interval '6 hours' AND now()",
    r"\$__interval": "30s",
}


def _dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def _targets(source: str) -> list[tuple[str, dict[str, Any]]]:
    return [
        (panel["title"], target)
        for panel in _dashboard()["panels"]
        for target in panel.get("targets", ())
        if target["datasource"]["uid"] == source
    ]


def _plain(sql: str) -> str:
    for macro, meaning in _MACROS.items():
        sql = re.sub(macro, meaning, sql)
    assert "$" not in sql, f"a macro or variable of Grafana that is not known here: {sql}"
    return sql


def test_dashboard_is_sound() -> None:
    dashboard = _dashboard()
    assert dashboard["schemaVersion"] >= 39
    variables = {f"${{{variable['name']}}}": variable for variable in dashboard["templating"]["list"]}
    assert {name: variable["query"] for name, variable in variables.items()} == _SOURCES
    assert {variable["type"] for variable in variables.values()} == {"datasource"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        assert panel["type"] in _PANELS
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["targets"], panel["title"]
        assert panel["description"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert _SOURCES[target["datasource"]["uid"]] == target["datasource"]["type"]
            assert bool(target.get("rawSql")) != bool(target.get("expr"))
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references))


_NEWEST = "(SELECT run_id FROM orcheo_dispatch.dispatch WHERE state = 'settled' ORDER BY settled_at DESC LIMIT 1)"
_BEGUN_TWICE = f"UPDATE orcheo_dispatch.dispatch SET attempts = 2 WHERE run_id = {_NEWEST}"
_WAITING = f"""
WITH run AS (UPDATE workflow_runs SET status = 'running' WHERE id = {_NEWEST} RETURNING id)
INSERT INTO orcheo_dispatch.question (run_id, checkpoint_id, interrupts) SELECT id, 'c', 1 FROM run
"""


def test_queries_of_panels_answer_with_the_rights_of_a_dashboard(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as owner:
        fill(owner, 2000, pending=100, running=20, days=0.2, payload=10)
        owner.execute("INSERT INTO orcheo_dispatch.policy (workflow_id, paused) VALUES ('w', true)")
        owner.execute(_BEGUN_TWICE)
        owner.execute(_WAITING)
    queries = _targets("${postgres}")
    assert len(queries) > 15
    with psycopg.connect(database.dsn_of(Kind.DASHBOARD), autocommit=True) as connection:
        for title, target in queries:
            cursor = connection.execute(_plain(target["rawSql"]))
            columns = [column.name for column in cursor.description or ()]
            rows = cursor.fetchall()
            if title != "Oldest transactions":
                assert rows, f"{title} shows nothing"
            if target["format"] == "time_series":
                assert columns[0] == "time"
                assert [row[0] for row in rows] == sorted(row[0] for row in rows), title


def _references(node: Any) -> set[str]:
    """Return every `${...}` in the texts of a dashboard."""
    return set(re.findall(r"\$\{[^}]*\}", json.dumps(node)))


def test_dashboard_for_an_import_by_hand_is_the_provisioned_one_with_inputs() -> None:
    """After a change of the dashboard: python -m tests.support.grafana."""
    assert grafana.IMPORTED.read_text(encoding="utf-8") == grafana.written(grafana.importable(_dashboard()))
    imported = json.loads(grafana.IMPORTED.read_text(encoding="utf-8"))
    inputs = {f"${{{each['name']}}}": each["pluginId"] for each in imported["__inputs"]}
    assert sorted(inputs.values()) == sorted(_SOURCES.values())
    # Whatever Grafana does not replace at an import would be looked for as a data source of that name.
    assert _references(imported) == set(inputs)
    assert imported["templating"]["list"] == []
    assert len(imported["panels"]) == len(_dashboard()["panels"])
    for panel in imported["panels"]:
        for each in (panel, *panel.get("targets", ())):
            if "datasource" in each:
                assert inputs[each["datasource"]["uid"]] == each["datasource"]["type"], panel["title"]
    assert {each["id"] for each in imported["__requires"] if each["type"] == "datasource"} == set(inputs.values())
    assert {each["id"] for each in imported["__requires"] if each["type"] == "panel"} == _PANELS - {"row"}


def test_provisioned_dashboard_has_no_inputs_and_chooses_the_provisioned_sources() -> None:
    dashboard = _dashboard()
    assert not {"__inputs", "__requires", "id"} & dashboard.keys()
    assert _references(dashboard) == set(_SOURCES)
    sources = yaml.safe_load((PROVISIONING / "datasources" / "orcheo.yml").read_text())["datasources"]
    provisioned = {source["uid"]: (source["name"], source["type"]) for source in sources}
    for variable in dashboard["templating"]["list"]:
        chosen = variable["current"]
        assert provisioned[chosen["value"]] == (chosen["text"], variable["query"])


def test_panels_name_their_views() -> None:
    for panel in _dashboard()["panels"]:
        for target in panel.get("targets", ()):
            for view in re.findall(r"orcheo_dispatch\.(\w+)", target.get("rawSql", "")):
                assert f"View {view}." in panel["description"], panel["title"]


def test_provisioning_leads_to_the_sources_that_the_dashboard_asks_for() -> None:
    sources = yaml.safe_load((PROVISIONING / "datasources" / "orcheo.yml").read_text())
    assert sources["apiVersion"] == 1
    assert {source["type"] for source in sources["datasources"]} == set(_SOURCES.values())
    assert not [source for source in sources["datasources"] if "password" in source]
    providers = yaml.safe_load((PROVISIONING / "dashboards" / "orcheo.yml").read_text())["providers"]
    assert [provider["type"] for provider in providers] == ["file"]
