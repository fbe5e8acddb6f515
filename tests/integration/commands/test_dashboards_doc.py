"""docs/dashboards.md names what there is, and its examples work."""

from __future__ import annotations

import re
from pathlib import Path
from uuid import UUID

import psycopg
import yaml

from orcheo_dispatch.dispatcher.backlog import Backlog
from orcheo_dispatch.shared.broker.app import connect
from orcheo_dispatch.shared.broker.installation import find_installation
from orcheo_dispatch.shared.metrics.model import BeatMetrics, DispatcherMetrics, WorkerMetrics
from tests.support.database.databases import Database
from tests.support.database.roles import Kind
from tests.support.database.runs import everything, insert_runs, settings_for

ROOT = Path(__file__).parents[3]
DOC = (ROOT / "docs" / "dashboards.md").read_text()

_ID = UUID(int=1)
# Of what a name says: how much, of what.
_UNITS = (
    "_total",
    "_seconds",
    "_runs",
    "_info",
    "_messages",
    "_slots",
    "_processes",
    "_workers",
    "_transactions",
    "_up",
    "_workflows",
)
_STATES = ("_in_flight", "_silent")

_COLUMNS = """
SELECT c.relname AS view, obj_description(c.oid) AS what, a.attname AS column,
       col_description(c.oid, a.attnum) AS means
  FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
 WHERE c.relkind = 'v' AND c.relnamespace = 'orcheo_dispatch'::regnamespace
 ORDER BY c.relname, a.attnum
"""


def test_views_and_columns_are_described_as_the_database_describes_them(database: Database) -> None:
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", DOC, re.MULTILINE | re.DOTALL))
    rows = everything(database, _COLUMNS)
    views = {row["view"] for row in rows}
    assert views == {name for name in sections if "```sql" in sections[name]}
    for view in views:
        mine = [row for row in rows if row["view"] == view]
        assert mine[0]["what"] in sections[view]
        assert re.findall(r"^\| `(\w+)` \| (.*) \|$", sections[view], re.MULTILINE) == [
            (row["column"], row["means"]) for row in mine
        ]


def test_examples_answer(database: Database) -> None:
    insert_runs(database)
    examples = re.findall(r"```sql\n(.*?)```", DOC, re.DOTALL)
    assert len(examples) > 10
    with psycopg.connect(database.dsn_of(Kind.DASHBOARD), autocommit=True) as connection:
        for example in examples:
            connection.execute(example)


def test_metrics_are_all_named(database: Database, redis_url: str) -> None:
    settings = settings_for(database, redis_url, health_port=1)
    made = [kind(settings, _ID) for kind in (BeatMetrics, DispatcherMetrics, WorkerMetrics)]
    with connect(redis_url) as client:
        backlog = Backlog(settings, find_installation(settings), client)
        made[1].add(backlog)
        text = "".join(metrics.read()[0].decode() for metrics in made)
        backlog.close()
    exposed = set(re.findall(r"^# TYPE orcheo_dispatch_(\w+) ", text, re.MULTILINE))
    section = DOC.partition("## Metrics")[2].partition("## Prometheus")[0]
    named = set(re.findall(r"`(\w+)`", section.partition("- Those")[0])) - {"orcheo_dispatch_", "ORCHEO_HEALTH_PORT"}
    assert named == exposed
    assert [name for name in exposed if not name.endswith(_UNITS + _STATES)] == []


def test_alerts_are_listed_as_they_are() -> None:
    groups = yaml.safe_load((ROOT / "ops" / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        condition = " ".join(rule["expr"].split()).replace("|", "\\|")
        line = f"| `{rule['alert']}` | {rule['labels']['severity']} | `{condition}` | {rule.get('for', 'at once')} |"
        assert line in DOC
