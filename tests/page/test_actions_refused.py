"""Who may not act: raw HTTP to a real dispatcher, each check alone, and the entry that each attempt leaves."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from orcheo_dispatch.dispatcher.page.actions import REFUSALS_PER_MINUTE
from orcheo_dispatch.dispatcher.page.acts import KINDS, MOST_RUNS
from tests.support.database.databases import Database
from tests.support.database.runs import everything, execute, insert_runs
from tests.support.processes.processes import Stack, until

TOKEN = "correct-horse-battery-staple"
USER = "X-Forwarded-User"
_SECRET = "hunter2-in-the-body"


class Dispatcher:
    """A real dispatcher, and a client that does everything right unless a test says otherwise."""

    def __init__(self, port: int, database: Database, user: str | None) -> None:
        self.port, self.database, self.user = port, database, user

    def send(self, method: str, path: str, body: str | None, headers: Mapping[str, str | None]) -> tuple[int, Any, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=40)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                for each in [] if value is None else value.split("\n"):
                    connection.putheader(name, each)
            if body is not None:
                connection.putheader("Content-Length", str(len(body.encode())))
            connection.endheaders(None if body is None else body.encode())
            response = connection.getresponse()
            text = response.read().decode()
            return response.status, text, dict(response.getheaders())
        finally:
            connection.close()

    def right(self) -> dict[str, str | None]:
        """Headers of a browser that may act."""
        own = f"127.0.0.1:{self.port}"
        who: dict[str, str | None] = {USER: self.user} if self.user else {"Authorization": f"Bearer {TOKEN}"}
        status, text, headers = self.send("GET", "/session.json", None, {"Host": own, **who})
        assert status == 200, text
        return {
            "Host": own,
            "Origin": f"http://{own}",
            "Sec-Fetch-Site": "same-origin",
            "Content-Type": "application/json",
            "Cookie": headers["Set-Cookie"].partition(";")[0],
            "X-CSRF-Token": json.loads(text)["csrf"],
            **who,
        }

    def act(
        self, name: str, body: object, instead: Mapping[str, str | None] | None = None, method: str = "POST"
    ) -> tuple[int, Any]:
        """Do it, with some headers changed, or left out if None."""
        headers = {**self.right(), **(instead or {})}
        sent = body if isinstance(body, str) else json.dumps(body)
        status, text, _ = self.send(method, f"/actions/{name}", None if method == "GET" else sent, headers)
        return status, json.loads(text) if text.startswith("{") else text

    def log(self) -> list[dict[str, Any]]:
        rows = everything(self.database, "SELECT * FROM orcheo_dispatch.operation ORDER BY id")
        return [{**row, "details": row["details"]} for row in rows]

    def changed(self) -> list[Any]:
        """Return what the actions could have changed."""
        return [
            everything(self.database, "SELECT id, status, payload::text FROM workflow_runs ORDER BY id"),
            everything(self.database, "SELECT * FROM orcheo_dispatch.policy"),
            everything(self.database, "SELECT * FROM orcheo_dispatch.isolation"),
        ]


_SETTINGS = {
    "token": {"ORCHEO_PAGE_ACTIONS": "true", "ORCHEO_HEALTH_TOKEN": TOKEN},
    "header": {"ORCHEO_PAGE_ACTIONS": "true", "ORCHEO_PAGE_USER_HEADER": USER},
    "off": {"ORCHEO_HEALTH_TOKEN": TOKEN},
    "no proxy": {
        "ORCHEO_PAGE_ACTIONS": "true",
        "ORCHEO_PAGE_USER_HEADER": USER,
        "ORCHEO_PAGE_PROXIES": "10.0.0.0/8,192.0.2.7",
    },
}


@pytest.fixture
def dispatcher(
    request: pytest.FixtureRequest, database: Database, redis_url: str, tmp_path: Path
) -> Iterator[Dispatcher]:
    kind = getattr(request, "param", "token")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # Paused, so that no run changes but by what a test does.
    execute(database, "INSERT INTO orcheo_dispatch.policy (paused, why) VALUES (true, 'test')")
    execute(database, "UPDATE workflow_runs SET status = 'failed'")
    stack = Stack(database, redis_url, tmp_path / "side-effects")
    with stack.running("dispatcher", ORCHEO_HEALTH_PORT=str(port), **_SETTINGS[kind]) as process:
        served = Dispatcher(port, database, "alice" if kind in {"header", "no proxy"} else None)
        process.saw("dispatcher_started")
        yield served


def _bodies(run_id: str) -> dict[str, dict[str, Any]]:
    runs, workflow = {"runs": [run_id]}, {"workflow_id": "w"}
    return {
        "requeue": runs,
        "cancel": runs,
        "fail": runs,
        "pause": workflow,
        "unpause": workflow,
        "limit": {**workflow, "max_running": 3},
        "priority": {**workflow, "priority": 2},
        "maintenance": {"on": True},
        "isolate": workflow,
        "clear-isolation": workflow,
    }


def _ended(database: Database, status: str = "failed") -> str:
    (run_id,) = insert_runs(database)
    execute(database, "UPDATE workflow_runs SET status = %s WHERE id = %s", status, run_id)
    return run_id


# Each is one thing that is wrong, in requests that are right otherwise: what is sent instead, and the answer.
_WRONG: dict[str, tuple[dict[str, str | None], int, str]] = {
    "no token": ({"Authorization": None}, 401, "The token is missing or wrong"),
    "wrong token": ({"Authorization": "Bearer wrong-wrong-wrong-wrong"}, 401, "The token is missing or wrong"),
    "origin of another site": ({"Origin": "https://evil.example"}, 403, "made by this page"),
    "origin of another port": ({"Origin": "http://127.0.0.1:1"}, 403, "made by this page"),
    "opaque origin": ({"Origin": "null"}, 403, "made by this page"),
    "no origin": ({"Origin": None}, 403, "made by this page"),
    "another site by fetch metadata": ({"Sec-Fetch-Site": "cross-site"}, 403, "made by this page"),
    "same site only": ({"Sec-Fetch-Site": "same-site"}, 403, "made by this page"),
    "no CSRF token": ({"X-CSRF-Token": None}, 403, "X-CSRF-Token"),
    "wrong CSRF token": ({"X-CSRF-Token": "0" * 64}, 403, "X-CSRF-Token"),
    "CSRF token of another session": ({"Cookie": f"orcheo_dispatch_session={'x' * 43}"}, 403, "X-CSRF-Token"),
    "no session": ({"Cookie": None}, 403, "X-CSRF-Token"),
    "forged host": ({"Host": "evil.example", "Origin": "http://evil.example"}, 421, "this host name"),
    "no host": ({"Host": None}, 421, "this host name"),
    "form": ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "application/json"),
    "text": ({"Content-Type": "text/plain"}, 415, "application/json"),
}


@pytest.mark.parametrize("name", list(KINDS))
def test_each_action_is_refused_for_each_thing_that_is_wrong(dispatcher: Dispatcher, name: str) -> None:
    run_id = _ended(dispatcher.database, "failed" if name == "requeue" else "pending")
    body = {**_bodies(run_id)[name], "why": _SECRET}
    if name == "unpause":
        execute(dispatcher.database, "INSERT INTO orcheo_dispatch.policy (workflow_id, paused) VALUES ('w', true)")
    before = dispatcher.changed()
    wrong = [_WRONG[each] for each in ("no token", "origin of another site", "forged host", "wrong CSRF token")]
    for instead, status, because in wrong:
        answered, answer = dispatcher.act(name, body, instead)
        assert (answered, list(answer)) == (status, ["error"])
        assert because in answer["error"]
    assert dispatcher.act(name, body, method="GET")[0] == 405
    assert dispatcher.changed() == before
    rows = [row for row in dispatcher.log() if row["interface"] == "page"]
    assert [row["details"]["asked"] for row in rows] == [name] * 5
    assert {(row["action"], row["refused"], row["changed"], row["why"]) for row in rows} == {
        (KINDS[name].logged, 1, 0, None)
    }
    assert len({row["details"]["refused_because"] for row in rows}) == 5
    assert _SECRET not in str(rows)
    # With all right it works, and the row names who.
    answered, answer = dispatcher.act(name, body)
    assert answered == 200, answer
    last = dispatcher.log()[-1]
    logged = "policy clear" if name == "unpause" else KINDS[name].logged
    if name != "clear-isolation":
        assert answer["changed"] == 1
        assert dispatcher.changed() != before
    assert (last["interface"], last["by"], last["action"]) == ("page", "token 127.0.0.1", logged)


@pytest.mark.parametrize("wrong", list(_WRONG))
def test_each_check_refuses_alone_and_leaves_an_entry(dispatcher: Dispatcher, wrong: str) -> None:
    instead, status, because = _WRONG[wrong]
    before = dispatcher.changed()
    answered, answer = dispatcher.act("maintenance", {"on": True, "why": _SECRET}, instead)
    assert (answered, because in answer["error"]) == (status, True)
    row = dispatcher.log()[-1]
    assert (row["details"]["asked"], row["refused"]) == ("maintenance", 1)
    assert because in row["details"]["refused_because"]
    assert _SECRET not in str(row)
    assert dispatcher.changed() == before


@pytest.mark.parametrize("dispatcher", ["off"], indirect=True)
def test_nobody_acts_while_actions_are_off(dispatcher: Dispatcher) -> None:
    own = f"127.0.0.1:{dispatcher.port}"
    right = {"Host": own, "Origin": f"http://{own}", "Authorization": f"Bearer {TOKEN}"}
    assert dispatcher.send("GET", "/session.json", None, right)[0] == 403
    run_id = _ended(dispatcher.database)
    before = dispatcher.changed()
    for name, body in list(_bodies(run_id).items())[:9]:
        sent = {**right, "Content-Type": "application/json", "X-CSRF-Token": "0" * 64}
        status, text, _ = dispatcher.send("POST", f"/actions/{name}", json.dumps({**body, "why": "x"}), sent)
        assert (status, "ORCHEO_PAGE_ACTIONS" in text) == (403, True)
    assert dispatcher.changed() == before
    assert [row["details"].get("asked") for row in dispatcher.log() if row["refused"]] == list(_bodies(run_id))[:9]


@pytest.mark.parametrize("dispatcher", ["header"], indirect=True)
def test_user_of_the_proxy_acts_and_is_named(dispatcher: Dispatcher) -> None:
    run_id = _ended(dispatcher.database)
    status, answer = dispatcher.act("requeue", {"runs": [run_id], "why": "fixed the key"})
    assert (status, answer) == (200, {"changed": 1, "refused": []})
    row = dispatcher.log()[-1]
    assert (row["by"], row["interface"], row["why"], row["run_ids"]) == ("alice", "page", "fixed the key", [run_id])
    for instead in (None, "", "alice\nroot"):
        status, answer = dispatcher.act("maintenance", {"on": True, "why": "x"}, {USER: instead})
        assert (status, "ORCHEO_PAGE_USER_HEADER" in answer["error"]) == (403, True)
    # The value is bound to the user, too: it is alice's.
    status, answer = dispatcher.act("maintenance", {"on": True, "why": "x"}, {USER: "mallory"})
    assert (status, "X-CSRF-Token" in answer["error"]) == (403, True)
    assert everything(dispatcher.database, "SELECT FROM orcheo_dispatch.policy WHERE maintenance") == []


@pytest.mark.parametrize("dispatcher", ["no proxy"], indirect=True)
def test_header_of_the_user_is_believed_from_proxies_only(dispatcher: Dispatcher) -> None:
    own = f"127.0.0.1:{dispatcher.port}"
    status, text, _ = dispatcher.send("GET", "/session.json", None, {"Host": own, USER: "alice"})
    assert (status, "ORCHEO_PAGE_PROXIES" in text) == (403, True)
    sent = {"Host": own, USER: "alice", "Content-Type": "application/json", "X-Forwarded-For": "10.0.0.1"}
    status, text, _ = dispatcher.send("POST", "/actions/maintenance", '{"on": true, "why": "x"}', sent)
    assert (status, "ORCHEO_PAGE_PROXIES" in text) == (403, True)
    assert dispatcher.log()[-1]["details"]["refused_because"] in text


def test_body_that_is_wrong_is_refused_and_not_recorded(dispatcher: Dispatcher) -> None:
    run_id = _ended(dispatcher.database)
    before = dispatcher.changed()
    for name, body in (
        ("requeue", "{"),
        ("requeue", {"runs": [run_id]}),
        ("requeue", {"runs": [run_id], "why": "  "}),
        ("requeue", {"runs": [], "why": "x"}),
        ("requeue", {"runs": ["r"] * (MOST_RUNS + 1), "why": "x"}),
        ("requeue", {"runs": [run_id], "why": "x", "hunter2": 1}),
        ("limit", {"workflow_id": "w", "rate_runs": 3, "why": "x"}),
        ("priority", {"priority": 3, "why": "x"}),
        ("pause", {"workflow_id": "w", "workspace_id": "v", "why": "x"}),
        ("pause", {"workflow_id": "w\0", "why": "x"}),
    ):
        status, answer = dispatcher.act(name, body)
        assert (status, answer["error"][:20]) == (400, "The body is invalid:"), (name, body)
    rows = [row for row in dispatcher.log() if row["refused"]]
    assert {row["details"]["refused_because"] for row in rows} == {"The body is invalid."}
    assert {row["by"] for row in rows} == {"token 127.0.0.1"}
    assert "hunter2" not in str(rows)
    assert dispatcher.changed() == before


def test_body_has_a_limit_and_a_length(dispatcher: Dispatcher) -> None:
    right = dispatcher.right()
    large = json.dumps({"on": True, "why": "x" * 70_000})
    assert dispatcher.send("POST", "/actions/maintenance", large, right)[0] == 413
    assert dispatcher.send("POST", "/actions/maintenance", None, right)[0] == 411
    chunked = {**right, "Transfer-Encoding": "chunked", "Content-Length": "5"}
    assert dispatcher.send("POST", "/actions/maintenance", None, chunked)[0] == 411
    for path in ("/", "/overview.json", "/session.json", "/run.json", "/livez"):
        assert dispatcher.send("POST", path, "{}", right)[0] == 405
    assert dispatcher.send("POST", "/actions/nothing", "{}", right)[0] == 404
    assert {dispatcher.send(method, "/actions/pause", "{}", right)[0] for method in ("PUT", "DELETE", "PATCH")} == {405}
    assert everything(dispatcher.database, "SELECT FROM orcheo_dispatch.policy WHERE maintenance") == []


def test_flood_of_attempts_leaves_some_entries_and_a_count(dispatcher: Dispatcher) -> None:
    right = dispatcher.right()
    for _ in range(3 * REFUSALS_PER_MINUTE):
        sent = {**right, "X-CSRF-Token": "0"}
        assert dispatcher.send("POST", "/actions/pause", '{"why": "x"}', sent)[0] == 403
    assert len([row for row in dispatcher.log() if row["refused"]]) == REFUSALS_PER_MINUTE


def test_selection_reports_what_was_not_done(dispatcher: Dispatcher) -> None:
    runs = [_ended(dispatcher.database) for _ in range(3)]
    execute(dispatcher.database, "UPDATE workflow_runs SET status = 'succeeded' WHERE id = %s", runs[0])
    status, answer = dispatcher.act("requeue", {"runs": [*runs, "no-such-run"], "why": "again", "from_start": True})
    assert (status, answer["changed"]) == (200, 2)
    assert {each["run_id"]: each["because"] for each in answer["refused"]} == {
        runs[0]: "run has succeeded",
        "no-such-run": "there is no such run",
    }
    (row,) = [row for row in dispatcher.log() if row["action"] == "requeue"]
    assert (sorted(row["run_ids"]), row["changed"], row["refused"]) == (sorted(runs[1:]), 2, 2)
    events = everything(dispatcher.database, "SELECT payload::text AS p FROM workflow_runs WHERE id = %s", runs[1])
    assert "again" in events[0]["p"]


def test_policies_are_set_and_taken_back(dispatcher: Dispatcher) -> None:
    def policy() -> dict[str, Any]:
        (row,) = everything(dispatcher.database, "SELECT * FROM orcheo_dispatch.policy WHERE workflow_id = 'w'")
        return row

    workflow = {"workflow_id": "w", "why": "slow"}
    for name, body in (
        ("pause", {"seconds": 900}),
        ("limit", {"max_running": 2, "rate_runs": 5, "rate_seconds": 60}),
        ("priority", {"priority": -3}),
    ):
        assert dispatcher.act(name, {**workflow, **body})[0] == 200
    row = policy()
    assert (row["paused"], row["max_running"], row["rate_runs"], row["rate_seconds"], row["priority"]) == (
        *(True, 2, 5, 60),
        -3,
    )
    assert 890 < (row["paused_until"] - row["at"]).total_seconds() <= 901
    for name in ("unpause", "limit", "priority"):
        assert dispatcher.act(name, workflow)[0] == 200
    # A policy that says nothing is gone.
    assert everything(dispatcher.database, "SELECT FROM orcheo_dispatch.policy WHERE workflow_id = 'w'") == []
    logged = [each["action"] for each in dispatcher.log() if each["workflow_id"] == "w"]
    assert logged == [*["policy set"] * 5, "policy clear"]


def test_locked_policy_does_not_hold_the_dispatcher_up(dispatcher: Dispatcher) -> None:
    import psycopg

    with psycopg.connect(dispatcher.database.dsn) as locked:
        locked.execute("LOCK TABLE orcheo_dispatch.policy IN ACCESS EXCLUSIVE MODE")
        status, answer = dispatcher.act("maintenance", {"on": True, "why": "x"})
        assert (status, answer["error"][:20]) == (503, "Postgres did not do ")
    own = {"Host": f"127.0.0.1:{dispatcher.port}"}
    until(lambda: dispatcher.send("GET", "/livez", None, own)[0] == 200, what="polls that succeed")
