"""The page and its figures over HTTP, without a browser."""

from __future__ import annotations

import json
import re
import socket
from typing import Any
from uuid import uuid4

import pytest

from orcheo_dispatch.dispatcher.page import watch
from orcheo_dispatch.dispatcher.page.routes import OVERVIEW
from orcheo_dispatch.shared.health.probe import ASSETS
from orcheo_dispatch.shared.ledger.model import ProcessKind
from orcheo_dispatch.shared.ledger.processes import Process
from tests.conftest import Admin
from tests.page.conftest import Serve, Served
from tests.support.database.databases import Database, close
from tests.support.database.roles import Kind, Roles
from tests.support.database.runs import claim_all, everything, execute, insert_runs, settings_for, store_of
from tests.support.page_states import HOSTILE, MARKER, WORKFLOWS, fill_broken, fill_busy
from tests.support.processes.processes import ROOT, Stack, until

TOKEN = "correct-horse-battery-staple"
_NAMES = {"dispatcher", "health", "read", "promise", "now", "hour", "runs", "stuck", "lost", "processes", "workflows"}
_NAMES |= {"isolated", "retrying", "waiting", "dead", "policies", "operations", "backlog"}


_ASSETS = [f"{ASSETS}{path.name}" for path in (ROOT / "dispatcher/page/assets").glob("*.[cj]s*")]


def _asset(served: Served, path: str) -> str:
    status, headers, body = served.get(path)
    kind = "text/css" if path.endswith(".css") else "text/javascript"
    assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
    return body


def _answer(served: Served, query: str = "") -> Any:
    """What the page is told now: no rows, if nothing could be read within the 1.5 seconds that it waits."""
    status, _, body = served.get(f"{OVERVIEW}{query}")
    assert status == 200
    return json.loads(body)


def _overview(served: Served, query: str = "") -> Any:
    """What the page is told once the runs were read; it asks again until then, as a browser does."""
    return until(lambda: (a := _answer(served, query))["runs"]["rows"] is not None and a, what="the runs read")


def test_page_is_served_under_a_policy_that_lets_nothing_else_in(database: Database, serve: Serve) -> None:
    status, headers, body = serve(database).get("/?status=failed")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    policy = dict(rule.strip().split(" ", 1) for rule in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["style-src"] == policy["script-src"] == "'self'"
    assert not re.search(r"<style|<script[^>]*>[^<]", body)
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cache-Control"] == "no-store"


def test_page_names_no_other_place_and_no_style_or_handler_of_its_own(database: Database, serve: Serve) -> None:
    served = serve(database)
    body = served.get("/")[2] + "".join(_asset(served, path) for path in _ASSETS)
    # The name of a format, not an address that anybody asks.
    body = body.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//[a-z]|@import|url\(", re.sub(r"^\s*// .*$", "", body, flags=re.MULTILINE))
    assert not re.search(r"\s(style|on[a-z]+)=", body)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", body)


def test_figures_have_the_names_that_are_documented(database: Database, serve: Serve) -> None:
    fill_broken(database)
    execute(
        database,
        "INSERT INTO orcheo_dispatch.policy (workflow_id, paused, paused_until, priority, max_running, rate_runs,"
        " rate_seconds, queue, timeout_seconds, lost_runs, retries, isolation, why)"
        " VALUES ('w', true, now() + interval '1 hour', 1, 1, 1, 1, 'q', 1, 'fail', 'off', 'shared', 'slow')",
    )
    seen = _overview(serve(database))
    assert set(seen) == _NAMES
    assert [(row["scope"], row["workflow_id"], row["why"]) for row in seen["policies"]] == [("workflow", "w", "slow")]
    assert 3590 < seen["policies"][0]["paused_for"] <= 3600
    assert [(row["action"], row["interface"], row["changed"]) for row in seen["operations"]] == [
        ("policy set", "sql", 1)
    ]
    assert set(seen["health"]) == {"level", "for", "problems", "changes", "checks"}
    assert len(seen["hour"]["minutes"]) == 60
    documented = set(re.findall(r"`([a-z_0-9]+)`", (ROOT / "docs" / "status-page.md").read_text(encoding="utf-8")))
    assert _names_in(seen) - documented == set()


def _problems(seen: Any) -> list[str]:
    return [problem["name"] for problem in seen["health"]["problems"]]


def _told(served: Served, name: str | None = None) -> Any:
    """Wait for the page to tell of this problem, or of any."""

    def look() -> Any:
        seen = _answer(served)
        return seen if (name in _problems(seen) if name else _problems(seen)) else None

    return until(look, what="a problem told")


def _names_in(value: Any) -> set[str]:
    if isinstance(value, dict):
        return {*value, *(name for each in value.values() for name in _names_in(each))}
    return {name for each in value for name in _names_in(each)} if isinstance(value, list) else set()


def test_busy_system_is_told_as_it_is(database: Database, serve: Serve, roles: Roles) -> None:
    fill_busy(database)
    seen = _overview(serve(database, kind=Kind.DISPATCHER))
    assert (seen["health"]["level"], seen["health"]["problems"]) == ("healthy", [])
    assert seen["promise"]["late"] == seen["promise"]["late_share"] == 0
    assert {name: seen["now"][name] for name in ("pending", "queued", "running", "capacity", "stuck")} == {
        "pending": 15,
        "queued": 9,
        "running": 37,
        "capacity": 64,
        "stuck": 0,
    }
    hour = seen["hour"]
    # The last hour begins within its first minute.
    assert 2300 <= hour["succeeded"] + hour["failed"] + hour["cancelled"] <= 2400
    assert sum(minute["failed"] for minute in hour["minutes"]) >= hour["failed"] - 2
    assert 0 < hour["wait_p50"] < hour["wait_p95"] < 5
    assert 0 < hour["ran_p50"] < hour["ran_p95"] < 20
    assert len(seen["runs"]["rows"]) == seen["runs"]["limit"] == watch.RUNS
    assert [process["kind"] for process in seen["processes"]] == ["beat", "dispatcher", "worker", "worker"]


def test_latency_is_the_ledgers(database: Database, serve: Serve) -> None:
    (run_id,) = insert_runs(database)
    execute(
        database,
        "INSERT INTO orcheo_dispatch.dispatch (run_id, workflow_id, triggered_by, state, outcome, fence, slot,"
        " claimed_at, begun_at, settled_at, dispatcher_id) SELECT id, workflow_id, 'webhook', 'settled', 'succeeded',"
        " 1, 'none', now(), created_at + interval '3 seconds', created_at + interval '7 seconds', gen_random_uuid()"
        " FROM workflow_runs",
    )
    execute(database, "UPDATE workflow_runs SET status = 'succeeded'")
    seen = _overview(serve(database))
    hour, (row,) = seen["hour"], seen["runs"]["rows"]
    assert (hour["succeeded"], hour["wait_p50"], hour["ran_p95"]) == (1, 3, 4)
    assert (row["run_id"], row["waited"], row["ran"]) == (run_id, 3, 4)


def test_broken_system_names_each_thing_that_is_wrong(database: Database, serve: Serve) -> None:
    fill_broken(database)
    served = serve(database)
    served.wrong["broker"] = "Redis is unavailable"
    seen = _overview(served)
    health = seen["health"]
    assert health["level"] == "unhealthy"
    assert [problem["name"] for problem in health["problems"]] == ["broker", "workers", "late", "stuck", "beat"]
    assert all(problem["text"] and problem["mend"] and problem["command"] for problem in health["problems"])
    assert seen["promise"]["late"] > 0
    assert len(seen["stuck"]) == seen["now"]["stuck"] == 3
    assert len(seen["lost"]) == 4
    assert [process["alive"] for process in seen["processes"]] == [False, True, False, False]


def test_isolated_workflows_are_named_with_who_and_until_when(database: Database, serve: Serve) -> None:
    fill_broken(database)
    seen = _overview(serve(database))
    assert seen["now"]["isolated"] == 2
    rows = [
        {name: row[name] for name in ("workflow", "workflow_version_id", "by", "times")} for row in seen["isolated"]
    ]
    assert rows == [
        {"workflow": HOSTILE, "workflow_version_id": "v", "by": "worker", "times": 3},
        {"workflow": WORKFLOWS[1], "workflow_version_id": None, "by": "ada", "times": 0},
    ]
    assert [row["until"] is None for row in seen["isolated"]] == [False, True]


def test_level_tells_since_when_and_what_was_before(
    database: Database, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_IDLE_SECONDS", 0.05)
    monkeypatch.setattr(watch, "_FRESH_SECONDS", 0.05)
    fill_busy(database)
    served = serve(database)
    assert _overview(served)["health"]["level"] == "healthy"
    served.wrong["broker"] = "Redis is unavailable"
    # Nobody looks meanwhile.
    until(lambda: len(served.page._watch._verdict._changes) == 2, what="the change noted")  # type: ignore[union-attr]
    served.wrong.clear()
    health = until(lambda: (h := _overview(served)["health"])["level"] == "healthy" and h, what="healthy again")
    assert [change["level"] for change in health["changes"]] == ["healthy", "unhealthy", "healthy"]
    assert health["changes"][1]["problems"] == ["broker"]
    assert health["for"] == pytest.approx(health["changes"][0]["for"])


def test_no_input_output_error_or_secret_is_in_any_answer(database: Database, serve: Serve) -> None:
    fill_busy(database)
    served = serve(database, health_token=TOKEN)
    answers = ""
    for path in (
        "/",
        *_ASSETS,
        OVERVIEW,
        f"{OVERVIEW}?status=failed",
        f"{OVERVIEW}?status=running",
        "/livez",
        "/readyz",
        "/metrics",
    ):
        status, headers, body = served.get(path, Authorization=f"Bearer {TOKEN}")
        assert status == 200
        answers += f"{headers}{body}"
    # They were there to be told: in the payload of each run, and as text in the ledger of some that failed.
    assert everything(database, "SELECT FROM workflow_runs WHERE payload::text LIKE '%%' || %s || '%%'", MARKER)
    assert everything(database, "SELECT FROM orcheo_dispatch.dispatch WHERE reason LIKE '%%' || %s", MARKER)
    assert "ValueError" in answers
    for secret in (MARKER, TOKEN, database.dsn, database.dsn.partition("//")[2].partition("@")[0]):
        assert secret not in answers


@pytest.mark.parametrize("status", ["pending", "running", "succeeded", "failed", "cancelled"])
def test_runs_are_filtered_by_status(database: Database, serve: Serve, status: str) -> None:
    fill_busy(database)
    rows = _overview(serve(database), f"?status={status}")["runs"]["rows"]
    assert {row["status"] for row in rows} == {status}
    (count,) = everything(database, "SELECT count(*) FROM workflow_runs WHERE status = %s", status)
    assert len(rows) == min(watch.RUNS, count["count"])
    assert [row["changed_ago"] for row in rows] == sorted(row["changed_ago"] for row in rows)


def test_runs_are_filtered_by_workflow_and_both(database: Database, serve: Serve) -> None:
    fill_busy(database)
    served = serve(database)
    workflow = next(each for each in _overview(served)["workflows"] if each["workflow"] == HOSTILE)["workflow_id"]
    rows = _overview(served, f"?workflow={workflow}&status=succeeded")["runs"]["rows"]
    assert {(row["workflow_id"], row["workflow"], row["status"]) for row in rows} == {(workflow, HOSTILE, "succeeded")}
    assert _overview(served, f"?workflow={uuid4()}")["runs"]["rows"] == []


def test_empty_filter_is_none(database: Database, serve: Serve) -> None:
    insert_runs(database)
    assert len(_overview(serve(database), "?status=&workflow=")["runs"]["rows"]) == 1


@pytest.mark.parametrize(
    "query", ["status=hunter2", "status=Failed", "workflow=a%00b", f"workflow={'x' * 300}", "a=1" + "&a=1" * 20]
)
def test_filter_that_is_none_is_refused_and_not_quoted(database: Database, serve: Serve, query: str) -> None:
    status, headers, body = serve(database).get(f"{OVERVIEW}?{query}")
    assert (status, headers["Content-Type"]) == (400, "text/plain; charset=utf-8")
    assert "hunter2" not in body


@pytest.mark.parametrize("workflow", ["' OR 1=1 --", "%25", "\\'; DROP TABLE workflow_runs"])
def test_filter_is_only_ever_a_value(database: Database, serve: Serve, workflow: str) -> None:
    insert_runs(database)
    status, _, body = serve(database).get(f"{OVERVIEW}?workflow={workflow.replace(' ', '+')}")
    assert (status, json.loads(body)["runs"]["rows"]) == (200, [])


def test_run_that_was_given_back_is_pending_and_shown_once(database: Database, serve: Serve) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        store.release(claim_all(store), reason="message_lost")
    (row,) = _overview(serve(database))["runs"]["rows"]
    assert (row["run_id"], row["status"], row["outcome"], row["ran"]) == (run_id, "pending", None, None)


def test_runs_of_others_are_not_ours(database: Database, serve: Serve) -> None:
    insert_runs(database, triggered_by="chatkit")
    seen = _overview(serve(database))
    assert (seen["runs"]["rows"], seen["now"]["pending"], seen["now"]["pending_others"]) == ([], 0, 1)


def test_names_of_workflows_are_shown_only_to_a_role_that_may_know_them(
    database: Database, serve: Serve, roles: Roles
) -> None:
    fill_busy(database)

    def names(kind: Kind | None) -> set[str | None]:
        return {each["workflow"] for each in _overview(serve(database, kind=kind))["workflows"]}

    assert names(None) == set(WORKFLOWS)
    assert names(Kind.DISPATCHER) == {None}
    execute(database, f"GRANT SELECT (id, handle) ON workflows TO {roles.group(Kind.DISPATCHER)}")
    assert names(Kind.DISPATCHER) == {f"handle-{number}" for number in range(1, 6)}


def test_with_a_token_the_page_is_open_and_its_figures_are_not(database: Database, serve: Serve) -> None:
    served = serve(database, health_token=TOKEN)
    assert {served.get(path)[0] for path in ("/", *_ASSETS)} == {200}
    assert served.get("/livez")[0] == served.get("/readyz")[0] == 200
    assert served.get(OVERVIEW)[0] == served.get("/metrics")[0] == 401
    _, headers, _ = served.get("/login", Authorization=f"Bearer {TOKEN}")
    cookie = headers["Set-Cookie"].split(";")[0]
    assert served.get(OVERVIEW, Cookie=cookie)[0] == served.get("/metrics", Cookie=cookie)[0] == 200


def test_database_away_is_told_and_the_last_figures_stay(
    database: Database, serve: Serve, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_FRESH_SECONDS", 0.05)
    insert_runs(database, 3)
    served = serve(database)
    before = _overview(served)
    close(admin, database)
    admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [database.name])
    seen = _told(served, "database")
    assert seen["health"]["level"] == "unhealthy"
    assert seen["now"] == before["now"]
    assert seen["read"]["at"]
    assert database.name not in json.dumps(seen["health"])


def test_database_away_from_the_start_is_told_with_no_figures(database: Database, serve: Serve) -> None:
    away = Database("away", "postgresql://nobody:hunter2@127.0.0.1:1/away")
    served = serve(away)
    seen = _told(served)
    assert [problem["name"] for problem in seen["health"]["problems"]] == ["database"]
    assert (seen["now"], seen["runs"]["rows"], seen["read"]) == (None, None, {"at": None, "ago": None})
    assert "hunter2" not in json.dumps(seen)


def test_missing_schema_is_told(orcheo_database: Database, serve: Serve) -> None:
    served = serve(orcheo_database)
    seen = _told(served)
    assert "A table is missing" in seen["health"]["problems"][0]["text"]


def test_slow_database_is_told_and_holds_nobody_up(
    database: Database, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_STATEMENT_MILLISECONDS", 200)
    with store_of(database, connections=1) as (_, engine), engine.begin() as locked:
        locked.exec_driver_sql("LOCK TABLE orcheo_dispatch.dispatch IN ACCESS EXCLUSIVE MODE")
        served = serve(database)
        seen = _told(served)
        assert seen["health"]["problems"][0]["name"] == "figures"
        assert served.get("/livez")[0] == 200


def test_many_browsers_ask_the_database_once(database: Database, serve: Serve) -> None:
    served = serve(database)
    times = [_overview(served)["read"]["at"] for _ in range(30)]
    assert len(set(times)) <= 2


def test_ten_filters_keep_no_more_than_a_few_in_mind(database: Database, serve: Serve) -> None:
    served = serve(database)
    for number in range(12):
        _overview(served, f"?workflow=w{number}")
    assert served.page._watch is not None
    assert len(served.page._watch._choices) == watch._CHOICES


def test_page_reads_only(database: Database, serve: Serve) -> None:
    served = serve(database)
    _overview(served)
    assert {served.get(path, method)[0] for path in ("/", OVERVIEW) for method in ("POST", "PUT", "DELETE")} == {405}
    assert served.get("/", "HEAD")[0] == served.get(OVERVIEW, "HEAD")[0] == 200


def test_real_dispatcher_serves_its_page(database: Database, redis_url: str, tmp_path: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    stack = Stack(database, redis_url, tmp_path / "side-effects")
    insert_runs(database)
    with store_of(database) as (_, engine):
        Process(ProcessKind.WORKER, concurrency=4).seen(engine)
    with stack.running("dispatcher", ORCHEO_HEALTH_PORT=str(port)) as process:
        served = Served(_At(port), None)  # type: ignore[arg-type]
        until(lambda: _overview(served)["now"]["queued"], what="the run queued")
        seen = _overview(served)
        assert served.get("/")[0] == 200
        assert seen["dispatcher"]["pid"] == process.pid
        assert seen["runs"]["rows"][0]["state"] in ("claimed", "published")
        names = [problem["name"] for problem in seen["health"]["problems"]]
        assert names in ([], ["beat"])
    assert settings_for(database).health_port == 0


class _At:
    def __init__(self, port: int) -> None:
        self.port = port
