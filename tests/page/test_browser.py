"""The page in a real Chromium: what an operator sees, in both themes, on a desk and on a phone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Error, Page, expect

from tests.page.conftest import Look, Serve, Served
from tests.support.database.databases import Database
from tests.support.database.runs import execute, insert_runs
from tests.support.hostile import STORABLE, does_harm
from tests.support.page_states import HOSTILE, MARKER, fill_broken, fill_busy

TOKEN = "correct-horse-battery-staple"
_SHIFT = 0.01
_STATES: dict[str, Callable[[Database], None]] = {
    "empty": lambda _: None,
    "busy": fill_busy,
    "broken": fill_broken,
}
# Every text that is seen, against what is behind it: the ratio of WCAG 2.1, of which small text needs 4.5.
_FAINT = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")


def _state(name: str, database: Database, serve: Serve) -> Served:
    _STATES[name](database)
    served = serve(database)
    if name == "broken":
        served.wrong["broker"] = "Redis is unavailable"
    return served


def _words(page: Page, rows: str = "#runs-rows tr") -> list[str]:
    return page.locator(rows).locator(".status > span").all_inner_texts()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", list(_STATES))
def test_page_fits_and_can_be_read(
    database: Database, serve: Serve, look: Look, state: str, scheme: Literal["light", "dark"]
) -> None:
    served = _state(state, database, serve)
    for width, height in ((1280, 800), (390, 844), *([(320, 640)] if state == "broken" else [])):
        window = look(scheme, width, height)
        page = window.open(served.url)
        expect(page.locator("html")).to_have_attribute("data-level", "healthy" if state == "busy" else "unhealthy")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(_FAINT) == []


def test_busy_page_tells_what_goes_on(database: Database, serve: Serve, look: Look) -> None:
    page = look().open(_state("busy", database, serve).url)
    expect(page.get_by_role("heading", level=1)).to_have_text("All is well")
    expect(page.locator("#late")).to_have_text("0 %")
    expect(page.locator("#running")).to_have_text("37")
    expect(page.locator("#processes-rows li")).to_have_count(4)
    expect(page.locator("#stuck-empty")).to_be_visible()
    assert page.title() == "OK · orcheo-dispatch"
    plot = page.get_by_role("img", name="The last hour: succeeded")
    plot.focus()
    page.keyboard.press("ArrowLeft")
    assert ":" in page.locator("#chart-ended figcaption span").inner_text()
    page.keyboard.press("Escape")
    expect(page.locator("#chart-ended figcaption span")).to_have_text("last hour")


def test_broken_page_names_what_is_wrong_and_what_mends_it(database: Database, serve: Serve, look: Look) -> None:
    page = look().open(_state("broken", database, serve).url)
    expect(page.get_by_role("heading", level=1)).to_have_text("5 problems")
    problems = page.get_by_role("list", name="Problems").get_by_role("listitem")
    expect(problems).to_have_count(5)
    expect(problems.first).to_contain_text("Redis is unavailable")
    expect(problems.nth(1)).to_contain_text("orcheo-dispatch worker")
    expect(page.locator("#stuck-rows li")).to_have_count(7)
    expect(page.locator("#processes-rows .missing")).to_have_count(3)
    assert page.title() == "Problems: 5 · orcheo-dispatch"


def test_filters_work_by_mouse_and_the_address_keeps_them(database: Database, serve: Serve, look: Look) -> None:
    page = look().open(_state("busy", database, serve).url)
    page.get_by_text("Failed", exact=True).click()
    expect(page.locator("#runs-rows .status.succeeded")).to_have_count(0)
    assert set(_words(page)) == {"failed"}
    page.get_by_role("combobox", name="Workflow").select_option(label="Lead scoring")
    expect(page.locator("#runs-rows tr", has_not_text="Lead scoring")).to_have_count(0)
    assert "status=failed&workflow=" in page.url
    page.reload()
    expect(page.locator("#runs-rows tr").first).to_contain_text("Lead scoring")
    assert set(_words(page)) == {"failed"}
    expect(page.get_by_role("combobox", name="Workflow").locator("option:checked")).to_have_text("Lead scoring")


def test_filters_work_by_keyboard(database: Database, serve: Serve, look: Look) -> None:
    page = look().open(_state("busy", database, serve).url)
    page.get_by_role("radio", name="All").focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="Running")).to_be_checked()
    expect(page.locator("#runs-table")).not_to_have_attribute("aria-busy", "true")
    assert set(_words(page)) == {"running"}


def test_filter_that_finds_nothing_says_so_and_offers_the_way_back(
    database: Database, serve: Serve, look: Look
) -> None:
    insert_runs(database)
    page = look().open(serve(database).url)
    page.get_by_text("Cancelled", exact=True).click()
    page.get_by_role("button", name="Show all runs").click()
    expect(page.locator("#runs-rows tr")).to_have_count(1)
    expect(page.get_by_role("radio", name="All")).to_be_focused()


def test_page_refreshes_itself_and_nothing_shifts(database: Database, serve: Serve, look: Look) -> None:
    page = look().open(_state("busy", database, serve).url)
    expect(page.locator("#running")).to_have_text("37")
    page.get_by_role("radio", name="All").focus()
    before = page.evaluate("window.shifted")
    insert_runs(database, 9)
    expect(page.locator("#pending")).to_have_text("24", timeout=15_000)
    expect(page.get_by_role("radio", name="All")).to_be_focused()
    assert page.evaluate("window.shifted") - before < _SHIFT


def test_dispatcher_that_cannot_be_reached_leaves_its_last_state(database: Database, serve: Serve, look: Look) -> None:
    served = _state("busy", database, serve)
    window = look()
    page = window.open(served.url)
    port = served.server.port
    served.server.stop()
    expect(page.get_by_role("alert").first).to_contain_text("Cannot reach the dispatcher.", timeout=15_000)
    expect(page.locator("#running")).to_have_text("37")
    serve(database, port=port)
    expect(page.locator("#unreachable")).to_be_hidden(timeout=30_000)
    # Chromium itself says so of each request that fails.
    assert all("ERR_CONNECTION" in complaint for complaint in window.complaints)
    window.complaints.clear()


def test_names_of_users_are_text(database: Database, serve: Serve, look: Look) -> None:
    page = look().open(_state("busy", database, serve).url)
    expect(page.get_by_role("cell", name=HOSTILE).first).to_be_visible()
    assert page.locator("#runs-rows img").count() == 0
    assert MARKER not in page.content()


def test_policy_lets_nothing_in(database: Database, serve: Serve, look: Look) -> None:
    window = look()
    page = window.open(serve(database).url)
    with pytest.raises(Error, match="TrustedHTML"):
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<b>x</b>')")
    assert page.evaluate("fetch('http://127.0.0.1:1/').then(() => 'sent', () => 'refused')") == "refused"
    assert any("Content Security Policy" in complaint for complaint in window.complaints)
    window.complaints.clear()


def test_token_is_asked_for_once(database: Database, serve: Serve, look: Look) -> None:
    insert_runs(database)
    served = serve(database, health_token=TOKEN)
    window = look()
    page = window.page
    page.goto(served.url)
    page.get_by_label("Token").fill("not-the-right-token")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("The token is wrong.")).to_be_visible()
    page.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#pending")).to_have_text("1")
    assert TOKEN not in page.url
    page.reload()
    expect(page.locator("#pending")).to_have_text("1")
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token")).to_be_focused()
    assert all("401" in complaint for complaint in window.complaints)
    window.complaints.clear()


def test_database_that_comes_back_is_told(database: Database, serve: Serve, look: Look) -> None:
    served = serve(database)
    page = look().open(served.url)
    execute(database, "ALTER VIEW orcheo_dispatch.processes RENAME TO away")
    expect(page.locator("#problems")).to_contain_text("A table is missing in Postgres", timeout=15_000)
    execute(database, "ALTER VIEW orcheo_dispatch.away RENAME TO processes")
    expect(page.locator("#problems")).not_to_contain_text("A table is missing in Postgres", timeout=15_000)
    assert json.loads(served.get("/overview.json")[2])["health"]["changes"]


def test_names_of_clients_turn_nothing_round_and_hide_nothing(database: Database, serve: Serve, look: Look) -> None:
    insert_runs(database, triggered_by="webhook")
    texts = [text[:300] for text in STORABLE]
    execute(
        database,
        "INSERT INTO workflows (id, handle, payload, created_at, updated_at)"
        " SELECT 'w' || n, 'h' || n, jsonb_build_object('name', name), now(), now()"
        " FROM unnest(%s::text[]) WITH ORDINALITY AS w(name, n)",
        texts,
    )
    execute(
        database,
        "INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at,"
        " updated_at) SELECT gen_random_uuid()::text, 'w' || n, 'v', 'pending', label, '{}', now(), now()"
        " FROM unnest(%s::text[]) WITH ORDINALITY AS w(label, n)",
        texts,
    )
    execute(
        database,
        "INSERT INTO orcheo_dispatch.process (id, kind, host, pid, version, concurrency, running, triggers)"
        " VALUES (gen_random_uuid(), 'dispatcher', 'h', 1, '1', 1, 0, '{*}')",
    )
    page = look().open(serve(database).url)
    expect(page.locator("#runs-rows tr")).to_have_count(len(texts) + 1)
    titles = "...[...document.querySelectorAll('[title]')].map((node) => node.title)"
    shown = page.evaluate(f"[document.querySelector('main').textContent, {titles}].join('\\n')")
    assert does_harm(shown.replace("\t", " ")) == []
    assert "<script>" in shown
    assert "\\u{202e}exe.txt" in shown
    assert page.locator("#runs-rows script, #runs-rows img").count() == 0
