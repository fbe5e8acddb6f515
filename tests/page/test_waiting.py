"""Runs that are resumed, retried, dead or wait for a person: their lists, and the story of each, on the page."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import pytest
from playwright.sync_api import Locator, Page, expect

from orcheo_dispatch.dispatcher.page import watch
from orcheo_dispatch.dispatcher.page.routes import ONE_RUN, OVERVIEW
from orcheo_dispatch.ops.runs.story import read_story
from tests.page.conftest import Look, Serve, Served
from tests.page.test_browser import _FAINT, TOKEN
from tests.support.database.databases import Database
from tests.support.database.roles import Kind, Roles
from tests.support.database.runs import everything, execute, insert_runs, settings_for, store_of
from tests.support.page_states import MARKER, fill_busy
from tests.support.processes.processes import ROOT
from tests.support.waiting_states import fill_waiting

_LISTS = ("retrying", "waiting", "dead")


def _overview(served: Served) -> Any:
    return json.loads(served.get(OVERVIEW)[2])


def _story(served: Served, run_id: str) -> Any:
    status, headers, body = served.get(f"{ONE_RUN}?id={run_id}")
    assert (status, headers["Content-Type"]) == (200, "application/json"), body
    return json.loads(body)


def _told(story: Any) -> list[tuple[str, str | None]]:
    return [(event["what"], event["detail"]) for event in story["events"]]


# -- over HTTP


def test_row_says_when_a_run_is_tried_again_among_many_runs(database: Database, serve: Serve) -> None:
    runs = fill_waiting(database)
    fill_busy(database)
    rows = {row["run_id"]: row for row in _overview(serve(database))["runs"]["rows"]}
    assert (rows[runs.retrying]["retries"], rows[runs.dead]["retries"]) == (1, 0)
    assert rows[runs.retrying]["next_attempt_in"] > 0


def test_lists_have_the_runs_of_the_views(database: Database, serve: Serve) -> None:
    runs = fill_waiting(database)
    seen = _overview(serve(database))
    for name in _LISTS:
        listed = everything(database, f"SELECT run_id FROM orcheo_dispatch.{name}_runs")
        assert [row["run_id"] for row in seen[name]] == [row["run_id"] for row in listed] == [getattr(runs, name)]
        assert seen["now"][name] == 1
    (retrying,), (waiting,), (dead,) = (seen[name] for name in _LISTS)
    assert (retrying["retries"], retrying["reason"], retrying["status"]) == (1, "ValueError", "failed")
    assert 290 < retrying["next_attempt_in"] <= 300
    assert (waiting["interrupts"], waiting["status"]) == (2, "running")
    assert 0 <= waiting["waiting_for"] < 60
    assert (dead["reason"], dead["next_attempt_at"], dead["retries"]) == ("SyntaxError", None, 0)
    rows = {row["run_id"]: row["next_attempt_at"] for row in seen["runs"]["rows"]}
    assert rows[runs.retrying] == retrying["next_attempt_at"]


def test_lists_are_bounded_and_counts_go_on(database: Database, serve: Serve) -> None:
    fill_busy(database)
    execute(
        database,
        "INSERT INTO orcheo_dispatch.retry (run_id, retries, next_at)"
        " SELECT run_id, 1, now() + interval '1 min' * row_number() OVER (ORDER BY run_id)"
        " FROM orcheo_dispatch.dispatch WHERE outcome = 'failed' ORDER BY run_id LIMIT 20",
    )
    seen = _overview(serve(database))
    assert (len(seen["retrying"]), seen["now"]["retrying"]) == (10, 20)
    times = [row["next_attempt_at"] for row in seen["retrying"]]
    assert times == sorted(times)
    (dead,) = everything(database, "SELECT count(*) AS runs FROM orcheo_dispatch.dead_runs")
    assert (len(seen["dead"]), seen["now"]["dead"]) == (10, dead["runs"])


def test_story_has_the_events_of_the_command(database: Database, serve: Serve) -> None:
    runs = fill_waiting(database)
    served = serve(database)
    with store_of(database) as (_, engine):
        for run_id in (runs.retrying, runs.waiting, runs.answered, runs.dead, runs.resumed):
            command = read_story(engine, run_id, settings_for(database))
            shown = _story(served, run_id)
            assert _told(shown) == [(event.what, event.detail) for event in command.events]
            assert (shown["attempts"], shown["retries"]) == (command.attempts, command.retries)


def test_story_has_the_names_that_are_documented(database: Database, serve: Serve) -> None:
    story = _story(serve(database), fill_waiting(database).resumed)
    section = (ROOT / "docs" / "status-page.md").read_text(encoding="utf-8").split("## `/run.json`")[1]
    documented = set(re.findall(r"`([a-z_]+)`", section))
    assert set(story) | set(story["events"][0]) <= documented


def test_story_tells_why_a_run_goes_on_or_does_not(database: Database, serve: Serve) -> None:
    runs = fill_waiting(database)
    served = serve(database)
    retrying, waiting = _story(served, runs.retrying), _story(served, runs.waiting)
    assert (retrying["dead"], retrying["retries"]) == (False, 1)
    (settled,) = (detail for what, detail in _told(retrying) if what == "settled")
    at = retrying["next_attempt_at"][:19].replace("T", " ")
    assert settled == f"failed: ValueError: retry 1 at {at} UTC"
    assert (waiting["interrupts"], waiting["dead"]) == (2, False)
    assert waiting["waiting_since"]
    assert ("run_waiting", "Waits for an answer.") in _told(waiting)
    answered = _story(served, runs.answered)
    assert (answered["interrupts"], answered["status"]) == (None, "pending")
    assert ("run_answered", None) in _told(answered)
    dead = _story(served, runs.dead)
    assert (dead["dead"], dead["next_attempt_at"]) == (True, None)
    resumed = _story(served, runs.resumed)
    assert (resumed["status"], resumed["attempts"]) == ("running", 2)
    (lost,) = (detail for what, detail in _told(resumed) if what == "run_requeued")
    assert lost is not None
    assert "from run-1, process 2201, attempt 1 of 5" in lost
    assert ("resumed", "after step 3, attempt 2: executes send") in _told(resumed)


def test_no_input_output_error_or_answer_is_in_any_answer(database: Database, serve: Serve) -> None:
    runs = fill_waiting(database)
    execute(database, "UPDATE orcheo_dispatch.dispatch SET reason = %s WHERE run_id = %s", f"x: {MARKER}", runs.dead)
    (stored,) = everything(database, "SELECT count(*) AS runs FROM workflow_runs WHERE payload::text ~ %s", MARKER)
    assert stored["runs"] == 5
    served = serve(database)
    told = [_story(served, run_id) for run_id in (runs.retrying, runs.waiting, runs.answered, runs.dead, runs.resumed)]
    assert MARKER not in json.dumps([*told, _overview(served)])


def test_role_of_a_dispatcher_reads_all_but_the_trace(database: Database, serve: Serve, roles: Roles) -> None:
    runs = fill_waiting(database)
    served = serve(database, kind=Kind.DISPATCHER)
    assert [_overview(served)["now"][name] for name in _LISTS] == [1, 1, 1]
    story = _story(served, runs.resumed)
    assert (story["audit_readable"], story["trace_readable"]) == (True, False)
    assert "run_requeued" in [what for what, _ in _told(story)]
    assert "resumed" not in [what for what, _ in _told(story)]


def test_long_story_ends_with_its_newest_events(database: Database, serve: Serve) -> None:
    (run_id,) = insert_runs(database)
    execute(
        database,
        "UPDATE workflow_runs SET payload = jsonb_set(payload, '{audit_log}', (SELECT jsonb_agg(jsonb_build_object("
        "'at', now() + n * interval '1 s', 'actor', 'api', 'action', 'n' || n, 'metadata', '{}'::jsonb))"
        " FROM generate_series(1, 900) AS n)) WHERE id = %s",
        run_id,
    )
    events = _told(_story(serve(database), run_id))
    assert (len(events), events[-1]) == (200, ("n900", None))


@pytest.mark.parametrize("given", ["", "?id=", "?id=%00", f"?id={'x' * 201}", "?run=x"])
def test_story_of_no_id_is_a_bad_request(database: Database, serve: Serve, given: str) -> None:
    assert serve(database).get(f"{ONE_RUN}{given}")[0] == 400


def test_story_of_an_unknown_run_is_not_found_and_one_of_a_deleted_run_is_told(
    database: Database, serve: Serve
) -> None:
    runs = fill_waiting(database)
    served = serve(database)
    assert served.get(f"{ONE_RUN}?id={runs.dead[:13]}")[0] == 404
    assert served.get(f"{ONE_RUN}?id='+OR+1=1")[0] == 404
    execute(database, "DELETE FROM workflow_runs WHERE id = %s", runs.dead)
    story = _story(served, runs.dead)
    assert (story["status"], story["dead"]) == (None, False)


def test_story_asks_for_the_token(database: Database, serve: Serve) -> None:
    runs = fill_waiting(database)
    served = serve(database, health_token=TOKEN)
    path = f"{ONE_RUN}?id={runs.dead}"
    assert (served.get(path)[0], served.get(path, Authorization=f"Bearer {TOKEN}")[0]) == (401, 200)
    assert {served.get(path, method)[0] for method in ("POST", "DELETE")} == {405}


def test_many_stories_keep_no_more_than_a_few_in_mind(database: Database, serve: Serve) -> None:
    served = serve(database)
    assert {served.get(f"{ONE_RUN}?id=r{number}")[0] for number in range(12)} == {404}
    assert served.page._watch is not None
    assert len(served.page._watch._stories) == 8


def test_story_that_takes_too_long_leaves_the_figures_alone(
    database: Database, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = fill_waiting(database)
    monkeypatch.setattr(watch, "_STATEMENT_MILLISECONDS", 300)
    with store_of(database, connections=1) as (_, engine), engine.begin() as locked:
        locked.exec_driver_sql("LOCK TABLE execution_history_steps IN ACCESS EXCLUSIVE MODE")
        served = serve(database)
        status, _, body = served.get(f"{ONE_RUN}?id={runs.resumed}")
        assert (status, "too slow" in body) == (503, True)
        seen = _overview(served)
        assert seen["now"]["running"] == 1
        assert "figures" not in [problem["name"] for problem in seen["health"]["problems"]]


def _before_this_release(database: Database) -> None:
    execute(database, "DROP TABLE orcheo_dispatch.retry, orcheo_dispatch.question CASCADE")


def test_schema_of_the_last_release_leaves_the_lists_out(database: Database, serve: Serve) -> None:
    runs = fill_waiting(database)
    _before_this_release(database)
    served = serve(database)
    seen = _overview(served)
    assert [seen[name] for name in _LISTS] == [seen["now"][name] for name in _LISTS] == [None] * 3
    assert runs.dead in [row["run_id"] for row in seen["runs"]["rows"]]
    assert {row["next_attempt_at"] for row in seen["runs"]["rows"]} == {None}
    assert "database" not in [problem["name"] for problem in seen["health"]["problems"]]
    status, _, body = served.get(f"{ONE_RUN}?id={runs.dead}")
    assert (status, list(json.loads(body))) == (503, ["error"])
    assert "A table is missing" in json.loads(body)["error"]
    assert "database" not in [problem["name"] for problem in _overview(served)["health"]["problems"]]


# -- in a browser


def _side(page: Page, run_id: str) -> Locator:
    return page.locator("#waiting-rows > li", has_text=run_id)


def test_page_lists_what_waits_and_what_is_dead(database: Database, serve: Serve, look: Look) -> None:
    runs = fill_waiting(database)
    page = look().open(serve(database).url)
    expect(page.locator("#waiting-count")).to_have_text("1 retrying, 1 waiting, 1 dead in 24 h")
    expect(_side(page, runs.retrying)).to_contain_text("ValueErrorretry 1 at ")
    expect(_side(page, runs.waiting)).to_contain_text("for 2 answers")
    expect(_side(page, runs.dead)).to_contain_text("SyntaxError")
    expect(page.locator("#runs-rows tr", has_text=runs.retrying)).to_contain_text(
        re.compile(r"failedretry \d\d:\d\d:\d\d, ValueError")
    )


def test_empty_lists_say_so(database: Database, serve: Serve, look: Look) -> None:
    page = look().open(serve(database).url)
    expect(page.locator("#waiting-empty")).to_contain_text("No run waits for its next attempt")


def test_run_is_opened_and_closed_by_keyboard_and_stays_open(database: Database, serve: Serve, look: Look) -> None:
    runs = fill_waiting(database)
    page = look().open(serve(database).url)
    row = page.locator("#runs-rows tr", has_text=runs.resumed)
    button = row.get_by_role("button", expanded=False)
    expect(button).to_have_accessible_name(f"running attempt 2, events of run {runs.resumed}")
    button.focus()
    page.keyboard.press("Enter")
    opened = row.get_by_role("button", expanded=True)
    story = page.locator("#runs-rows .story")
    expect(story.get_by_role("listitem").filter(has_text="resumed")).to_contain_text("after step 3, attempt 2")
    expect(story.get_by_role("listitem").filter(has_text="requeued")).to_contain_text("from run-1, process 2201")
    expect(opened).to_be_focused()
    execute(database, "UPDATE workflow_runs SET status = 'cancelled' WHERE id = %s", runs.resumed)
    expect(story.locator("p").first).to_have_text("cancelled, attempt 2", timeout=15_000)
    expect(opened).to_be_focused()
    page.keyboard.press("Space")
    expect(story).to_have_count(0)
    expect(row.get_by_role("button", expanded=False)).to_be_focused()


def test_each_list_opens_its_runs_one_at_a_time(database: Database, serve: Serve, look: Look) -> None:
    runs = fill_waiting(database)
    page = look().open(serve(database).url)
    for run_id, said in (
        (runs.waiting, "Waiting for 2 answers for "),
        (runs.retrying, "Failed. Next attempt at "),
        (runs.dead, "Dead: failed, and not tried again."),
    ):
        _side(page, run_id).get_by_role("button").click()
        expect(_side(page, run_id).locator(".story p").first).to_contain_text(said)
        expect(page.locator("[aria-expanded=true]")).to_have_count(1)
        expect(page.locator(".story:visible")).to_have_count(1)
    assert MARKER not in page.content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_open_run_fits_and_can_be_read(
    database: Database, serve: Serve, look: Look, scheme: Literal["light", "dark"]
) -> None:
    runs = fill_waiting(database)
    url = serve(database).url
    for width, height in ((1280, 800), (390, 844), (320, 640)):
        page = look(scheme, width, height).open(url)
        for row in (page.locator("#runs-rows tr", has_text=runs.resumed), _side(page, runs.waiting)):
            row.get_by_role("button").click()
            expect(page.locator(".story:visible li").first).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(_FAINT) == []


def test_page_beside_the_schema_of_the_last_release_says_what_is_missing(
    database: Database, serve: Serve, look: Look
) -> None:
    runs = fill_waiting(database)
    _before_this_release(database)
    window = look()
    page = window.open(serve(database).url)
    expect(page.locator("#waiting")).to_be_hidden()
    page.locator("#runs-rows tr", has_text=runs.dead).get_by_role("button").click()
    expect(page.locator("#runs-rows .story")).to_contain_text("A table is missing in Postgres")
    # Chromium itself says so of each request that fails.
    assert all("503" in complaint for complaint in window.complaints)
    window.complaints.clear()
