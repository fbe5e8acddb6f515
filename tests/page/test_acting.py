"""Acting on the page in a real Chromium: by mouse and by keyboard, on a desk and on a phone, in both themes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

from tests.page.conftest import Look, Serve
from tests.support.database.databases import Database
from tests.support.database.roles import Kind, Roles
from tests.support.database.runs import WORKFLOW_ID, everything, execute, insert_runs
from tests.support.page_states import MARKER, fill_broken
from tests.support.waiting_states import fill_waiting

_FAINT = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")
_ON: dict[str, Any] = {"page_actions": True, "page_user_header": "X-Forwarded-User"}
_SOON = 15_000


def _opened(database: Database, serve: Serve, look: Look, *, kind: Kind | None = None, **window: Any) -> Page:
    page = look(X_Forwarded_User="alice", **window).open(serve(database, kind=kind, **_ON).url)
    expect(page.locator("#about")).to_contain_text("Acting as alice.")
    return page


def _dialog(page: Page) -> Locator:
    return page.get_by_role("dialog")


def _confirm(page: Page, why: str, button: str) -> None:
    page.get_by_label("Reason").fill(why)
    _dialog(page).get_by_role("button", name=button, exact=True).click()
    expect(_dialog(page)).to_be_hidden(timeout=_SOON)


def _operations(database: Database) -> list[Any]:
    rows = everything(database, "SELECT * FROM orcheo_dispatch.operation WHERE interface = 'page' ORDER BY id")
    return [(row["action"], row["by"], row["why"], row["changed"], row["refused"]) for row in rows]


def test_dead_run_is_requeued_by_keyboard(database: Database, serve: Serve, look: Look, roles: Roles) -> None:
    runs = fill_waiting(database)
    page = _opened(database, serve, look, kind=Kind.DISPATCHER)
    side = page.locator("#waiting-rows > li", has_text=runs.dead)
    side.get_by_role("button", expanded=False).focus()
    page.keyboard.press("Enter")
    button = side.get_by_role("button", name="Requeue: This run", exact=True)
    button.focus()
    page.keyboard.press("Space")
    expect(page.get_by_role("dialog", name="Requeue 1 run")).to_be_visible()
    expect(page.get_by_label("Reason")).to_be_focused()
    page.keyboard.press("Escape")
    expect(_dialog(page)).to_be_hidden()
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    # Without a reason nothing happens.
    page.keyboard.press("Enter")
    expect(_dialog(page)).to_be_visible()
    page.keyboard.type("the key was rotated")
    page.keyboard.press("Enter")
    expect(_dialog(page)).to_be_hidden(timeout=_SOON)
    expect(page.locator("#said")).to_have_text("1 run requeued.")
    (run,) = everything(database, "SELECT status FROM workflow_runs WHERE id = %s", runs.dead)
    assert run["status"] == "pending"
    assert _operations(database) == [("requeue", "alice", "the key was rotated", 1, 0)]
    newest = page.locator("#operations-rows > li").first
    expect(newest).to_contain_text("requeue", timeout=_SOON)
    expect(newest).to_contain_text("alice · page")
    expect(newest).to_contain_text("the key was rotated")
    expect(side).to_have_count(0, timeout=_SOON)
    expect(page.locator("#waiting")).to_be_focused()


def test_selected_runs_are_cancelled_together(database: Database, serve: Serve, look: Look) -> None:
    runs = insert_runs(database, 4)
    execute(database, "UPDATE workflow_runs SET status = 'succeeded' WHERE id = %s", runs[0])
    execute(
        database,
        "INSERT INTO orcheo_dispatch.dispatch (run_id, workflow_id, triggered_by, state, outcome, fence, slot,"
        " claimed_at, begun_at, settled_at, dispatcher_id) SELECT id, workflow_id, 'webhook', 'settled', 'succeeded',"
        " 1, 'none', now(), now(), now(), gen_random_uuid() FROM workflow_runs WHERE status = 'succeeded'",
    )
    page = _opened(database, serve, look)
    page.get_by_role("checkbox", name=f"Select run {runs[1]}").check()
    expect(page.locator("#chosen-count")).to_have_text("1 run selected")
    page.locator("#runs").get_by_role("button", name="Select all").click()
    expect(page.locator("#chosen-count")).to_have_text("4 runs selected")
    page.get_by_role("button", name="Cancel: Selected runs").click()
    expect(page.get_by_role("dialog", name="Cancel 4 runs")).to_be_visible()
    _confirm(page, "wrong input", "Cancel 4 runs")
    expect(page.locator("#said")).to_have_text("3 runs cancelled, 1 run was not: run is succeeded.")
    expect(page.locator("#chosen")).to_be_hidden()
    expect(page.locator("#runs-rows .status.cancelled")).to_have_count(3, timeout=_SOON)
    assert _operations(database) == [("cancel", "alice", "wrong input", 3, 1)]


def test_workflow_is_paused_limited_and_freed_again(database: Database, serve: Serve, look: Look) -> None:
    insert_runs(database)
    serving = serve(database, **_ON)
    page = look(X_Forwarded_User="alice").open(f"{serving.url}?workflow={WORKFLOW_ID}")
    acts = page.locator("#workflow-acts")
    acts.get_by_role("button", name="Pause").click()
    page.get_by_label("For how long").select_option(label="1 hour")
    _confirm(page, "provider is down", "Pause")
    row = page.locator("#policies-rows > li")
    expect(row).to_contain_text("paused, 59 min left", timeout=_SOON)
    expect(row).to_contain_text("provider is down")
    acts.get_by_role("button", name="Limit").click()
    page.get_by_label("Runs at the same time").fill("3")
    page.get_by_label("Runs that begin per period").fill("10")
    page.get_by_label("Period", exact=True).select_option(label="minute")
    _confirm(page, "be gentle", "Limit")
    expect(row).to_contain_text("at most 3 at a time, at most 10 per min", timeout=_SOON)
    row.get_by_role("button", name="Limit").click()
    expect(page.get_by_label("Runs at the same time")).to_have_value("3")
    page.keyboard.press("Escape")
    row.get_by_role("button", name="Unpause").click()
    _confirm(page, "it is back", "Unpause")
    expect(row).not_to_contain_text("paused", timeout=_SOON)
    acts.get_by_role("button", name="Priority").click()
    page.get_by_label("Priority", exact=True).select_option(label="+2")
    _confirm(page, "first", "Priority")
    expect(row).to_contain_text("priority +2", timeout=_SOON)
    (policy,) = everything(database, "SELECT * FROM orcheo_dispatch.policy")
    assert (policy["paused"], policy["max_running"], policy["rate_runs"], policy["rate_seconds"]) == (None, 3, 10, 60)
    assert (policy["priority"], policy["by"]) == (2, "alice")


def test_workflow_is_isolated_and_freed_again(database: Database, serve: Serve, look: Look) -> None:
    insert_runs(database)
    page = look(X_Forwarded_User="alice").open(f"{serve(database, **_ON).url}?workflow={WORKFLOW_ID}")
    page.locator("#workflow-acts").get_by_role("button", name="Isolate").click()
    _confirm(page, "leaks memory", "Isolate")
    row = page.locator("#isolated-rows > li")
    expect(row).to_contain_text("leaks memory", timeout=_SOON)
    expect(row).to_contain_text("by alice")
    row.get_by_role("button", name="End isolation").click()
    _confirm(page, "repaired", "End isolation")
    expect(page.locator("#isolated")).to_be_hidden(timeout=_SOON)
    assert [each[0] for each in _operations(database)] == ["isolate", "isolate clear"]


def test_maintenance_is_started_told_and_ended(database: Database, serve: Serve, look: Look) -> None:
    page = _opened(database, serve, look)
    expect(page.locator("#maintenance")).to_be_hidden()
    page.get_by_role("button", name="Start maintenance").click()
    _confirm(page, "upgrade of Postgres", "Start maintenance")
    banner = page.locator("#maintenance")
    expect(banner).to_contain_text("Maintenance: no run is claimed and none begins.", timeout=_SOON)
    expect(banner).to_contain_text("upgrade of Postgres (alice)")
    page.get_by_role("button", name="End maintenance").click()
    _confirm(page, "done", "End maintenance")
    expect(banner).to_be_hidden(timeout=_SOON)


def test_refusal_is_told_in_the_dialog(database: Database, serve: Serve, look: Look) -> None:
    window = look(X_Forwarded_User="alice")
    page = window.open(serve(database, **_ON).url)
    page.get_by_role("button", name="Start maintenance").click()
    page.context.set_extra_http_headers({})
    page.get_by_label("Reason").fill("x")
    _dialog(page).get_by_role("button", name="Start maintenance", exact=True).click()
    expect(_dialog(page).get_by_role("alert")).to_contain_text("The proxy names no user", timeout=_SOON)
    assert everything(database, "SELECT FROM orcheo_dispatch.policy") == []
    # Chromium itself says so of each request that fails.
    assert all("403" in complaint for complaint in window.complaints)
    window.complaints.clear()


def test_page_is_read_only_while_actions_are_off_or_nobody_is_named(
    database: Database, serve: Serve, look: Look
) -> None:
    fill_waiting(database)
    execute(database, "INSERT INTO orcheo_dispatch.policy (paused, why, by) VALUES (true, 'as told', 'ada')")
    for settings in ({}, _ON):
        window = look()
        page = window.open(serve(database, **settings).url)
        expect(page.locator("#about")).to_contain_text("This page is read-only")
        # What is in force is shown all the same.
        expect(page.locator("#policies-rows > li")).to_contain_text("paused")
        expect(page.get_by_role("checkbox")).to_have_count(0)
        expect(page.get_by_role("button", name=re.compile("Select all|Pause|Maintenance"))).to_have_count(0)
        assert all("403" in complaint for complaint in window.complaints)
        window.complaints.clear()


def test_selection_survives_refreshes_and_what_clients_write_is_text(
    database: Database, serve: Serve, look: Look
) -> None:
    fill_broken(database)
    execute(
        database,
        "INSERT INTO orcheo_dispatch.policy (workflow_id, paused, why) VALUES ('<img src=x onerror=alert(1)>', true,"
        " '<img src=x onerror=alert(2)>')",
    )
    page = _opened(database, serve, look)
    first = page.locator("#stuck-rows .pick").first
    first.check()
    expect(page.locator("#policies-rows")).to_contain_text("onerror=alert(2)")
    before = page.evaluate("performance.getEntriesByName(location.origin + '/overview.json').length")
    page.wait_for_function(
        "n => performance.getEntriesByType('resource').filter((e) => e.name.includes('overview')).length > n + 1",
        arg=before,
    )
    expect(first).to_be_checked()
    assert MARKER not in page.content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_acting_page_is_accessible_and_fits(
    database: Database, serve: Serve, look: Look, scheme: Literal["light", "dark"], width: int
) -> None:
    runs = fill_waiting(database)
    fill_broken(database)
    execute(database, "INSERT INTO orcheo_dispatch.policy (maintenance, why) VALUES (true, 'upgrade')")
    execute(
        database,
        "INSERT INTO orcheo_dispatch.policy (workflow_id, paused, max_running, rate_runs, rate_seconds)"
        " VALUES (md5('workflow1')::uuid::text, true, 3, 10, 60)",
    )
    page = _opened(database, serve, look, scheme=scheme, width=width, height=740)
    side = page.locator("#waiting-rows > li", has_text=runs.dead)
    side.locator(".pick").check()
    side.get_by_role("button", expanded=False).click()
    expect(side.get_by_role("button", name="Requeue: This run", exact=True)).to_be_visible()
    for name in (None, "Limit: All runs", "Requeue: Selected runs"):
        if name is not None:
            page.get_by_role("button", name=name, exact=True).click()
            expect(_dialog(page)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(_FAINT) == []
        found = Axe().run(page, options={"resultTypes": ["violations"]})
        assert [(each["id"], [node["target"] for node in each["nodes"]]) for each in found.response["violations"]] == []
        if name is not None:
            page.keyboard.press("Escape")
