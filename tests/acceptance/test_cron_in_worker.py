"""Cron triggers are dispatched by a worker as Orcheo's stock worker does it, and survive what that does not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from orcheo.config import get_settings

from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.worker.orcheo.cron import OrcheoCron
from tests.support.database.databases import Database
from tests.support.database.runs import execute, insert_runs, one
from tests.support.orcheo import crons

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
# Lord Howe changes its clocks by half an hour.
CHANGES = {
    ("Europe/Berlin", "forward"): datetime(2026, 3, 28, 22, tzinfo=UTC),
    ("Europe/Berlin", "back"): datetime(2026, 10, 24, 22, tzinfo=UTC),
    ("America/New_York", "forward"): datetime(2026, 3, 8, 4, tzinfo=UTC),
    ("America/New_York", "back"): datetime(2026, 11, 1, 3, tzinfo=UTC),
    ("Australia/Lord_Howe", "forward"): datetime(2026, 10, 3, 13, tzinfo=UTC),
    ("Australia/Lord_Howe", "back"): datetime(2026, 4, 4, 12, tzinfo=UTC),
}
EXPRESSIONS = ("30 2 * * *", "15 1-3 * * *", "*/30 * * * *", "0 0 * * 0", "5 3 28-31 * *")


@pytest.fixture(autouse=True)
def no_pushes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with crons.without_pushes(monkeypatch):
        yield


@pytest.mark.parametrize(("zone", "direction"), CHANGES)
def test_occurrences_around_a_clock_change_are_those_of_stock(orcheo_here: Database, zone: str, direction: str) -> None:
    moments = _moments(CHANGES[zone, direction], hours=7, seed=zone)

    async def scenario() -> None:
        workspace = crons.create_workspace(orcheo_here, "a")
        for expression in EXPRESSIONS:
            await crons.create_trigger(workspace, expression=expression, timezone=zone, allow_overlapping=True)
        await crons.create_trigger(workspace, expression="0 0 1 1 *", timezone="Asia/Kathmandu")
        expected = await _played_by_stock(orcheo_here, moments)
        assert len([run for step in expected for run in step if len(run) == 3]) >= 12
        assert await _played_by_us(orcheo_here, moments) == expected

    crons.play(scenario)


def test_windows_missed_minutes_and_overlaps_are_those_of_stock(orcheo_here: Database) -> None:
    # Minutes without a dispatch: of one minute, of an hour, of a day.
    moments = [NOON + timedelta(minutes=at) for at in (0, 1, 2, 6, 7, 66, 67, 68, 69, 1500, 1501, 1502)]

    async def scenario() -> None:
        workspace = crons.create_workspace(orcheo_here, "a")
        for configuration in (
            {"expression": "* * * * *", "allow_overlapping": True},
            {"expression": "*/5 * * * *"},
            {"expression": "0 * * * *", "timezone": "Asia/Kathmandu"},
            {"expression": "* * * * *", "allow_overlapping": True, "start_at": NOON + timedelta(minutes=6)},
            {"expression": "* * * * *", "allow_overlapping": True, "start_at": NOON - timedelta(minutes=6)},
            {"expression": "* * * * *", "allow_overlapping": True, "end_at": NOON + timedelta(minutes=6)},
            {"expression": "0 0 30 2 *"},
        ):
            await crons.create_trigger(workspace, **configuration)
        await crons.create_trigger(None, expression="*/5 * * * *")
        await crons.create_trigger(workspace, version=False, expression="*/5 * * * *")
        archived = await crons.create_trigger(workspace, expression="*/5 * * * *")
        execute(orcheo_here, "UPDATE workflows SET is_archived = true WHERE id = %s", archived)
        for runs_end in (True, False):
            expected = await _played_by_stock(orcheo_here, moments, runs_end=runs_end)
            assert len([run for step in expected for run in step]) >= 30
            assert await _played_by_us(orcheo_here, moments, runs_end=runs_end) == expected

    crons.play(scenario)


@pytest.mark.parametrize(("label", "created"), [("cron", 0), ("webhook", 1)])
def test_only_a_live_run_of_the_trigger_itself_is_an_overlap(orcheo_here: Database, label: str, created: int) -> None:
    async def scenario() -> None:
        workspace = crons.create_workspace(orcheo_here, "a")
        workflow = await crons.create_trigger(workspace, expression="0 12 * * *", timezone="UTC")
        insert_runs(orcheo_here, workflow_id=workflow, triggered_by=label)
        assert (await OrcheoCron().dispatch(now=NOON)).runs == created

    crons.play(scenario)


def test_run_is_the_one_that_stock_creates(orcheo_here: Database) -> None:
    async def scenario() -> None:
        workspace = crons.create_workspace(orcheo_here, "a")
        await crons.create_trigger(workspace, expression="0 12 * * *", timezone="UTC")
        stock = crons.stock_repository(get_settings())
        await stock.dispatch_due_cron_runs(now=NOON)
        await stock.close()
        (theirs,) = crons.cron_runs(orcheo_here)
        _reset(orcheo_here)
        before = one(orcheo_here, "SELECT clock_timestamp() AS at")["at"]
        await OrcheoCron().dispatch(now=NOON)
        (ours,) = crons.cron_runs(orcheo_here)
        assert _without_ids_and_times(ours["payload"]) == _without_ids_and_times(theirs["payload"])
        assert ours["workspace_id"] == theirs["workspace_id"] == workspace
        times = [ours["payload"]["created_at"], ours["payload"]["updated_at"], ours["payload"]["audit_log"][0]["at"]]
        assert times == [ours["created_at"].astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")] * 3
        assert ours["created_at"] == ours["updated_at"] >= before

    crons.play(scenario)


def test_every_workspace_is_served_and_one_without_slots_delays_no_other(orcheo_here: Database) -> None:
    async def scenario() -> None:
        full = crons.create_workspace(orcheo_here, "full", max_runs=1)
        free = crons.create_workspace(orcheo_here, "free")
        for workspace in (full, full, free, free):
            await crons.create_trigger(workspace, expression="0 12 * * *", timezone="UTC")
        cron = OrcheoCron()
        report = await cron.dispatch(now=NOON)
        assert (report.outcome, report.runs, report.skipped) == ("succeeded", 3, {"quota": 1})
        assert sorted(run["workspace_id"] for run in crons.cron_runs(orcheo_here)) == sorted([full, free, free])
        _give_slot_back(full)
        # What was skipped is still due, as in stock.
        report = await cron.dispatch(now=NOON + timedelta(minutes=1))
        assert (report.runs, report.skipped) == (1, {})
        assert {run["scheduled_for"] for run in crons.cron_runs(orcheo_here)} == {NOON.isoformat()}

    crons.play(scenario)


@pytest.mark.parametrize(
    "damage",
    [
        'UPDATE cron_triggers SET config = \'{"expression": "nonsense"}\' WHERE workflow_id = %s',
        "UPDATE cron_triggers SET config = config || '{\"unknown\": 1}' WHERE workflow_id = %s",
        "UPDATE cron_triggers SET config = '[]' WHERE workflow_id = %s",
        "UPDATE workflows SET payload = '{}' WHERE id = %s",
        "UPDATE workflow_versions SET payload = '{}' WHERE workflow_id = %s",
        "UPDATE workflows SET workspace_id = '5a5a5a5a-5a5a-4a5a-8a5a-5a5a5a5a5a5a' WHERE id = %s",
        "UPDATE workflows SET workspace_id = 'no uuid' WHERE id = %s",
    ],
)
def test_trigger_that_cannot_be_dispatched_stops_no_other(orcheo_here: Database, damage: str) -> None:
    async def scenario() -> None:
        workspace = crons.create_workspace(orcheo_here, "a")
        broken = await crons.create_trigger(workspace, expression="0 12 * * *", timezone="UTC")
        for _ in range(3):
            await crons.create_trigger(workspace, expression="0 12 * * *", timezone="UTC")
        # The first one that is looked at.
        execute(orcheo_here, "UPDATE cron_triggers SET last_dispatched_at = %s", NOON - timedelta(hours=24))
        execute(orcheo_here, "UPDATE cron_triggers SET last_dispatched_at = NULL WHERE workflow_id = %s", broken)
        execute(orcheo_here, damage, broken)
        report = await OrcheoCron().dispatch(now=NOON)
        assert (report.runs, report.skipped) == (3, {"failed": 1})

    crons.play(scenario)


def test_trigger_whose_row_somebody_holds_is_skipped_and_dispatched_later(orcheo_here: Database) -> None:
    async def scenario() -> None:
        workspace = crons.create_workspace(orcheo_here, "a")
        held = await crons.create_trigger(workspace, expression="0 12 * * *", timezone="UTC")
        await crons.create_trigger(workspace, expression="0 12 * * *", timezone="UTC")
        cron = OrcheoCron()
        with psycopg.connect(orcheo_here.dsn) as somebody:
            somebody.execute("SELECT FROM cron_triggers WHERE workflow_id = %s FOR UPDATE", (held,))
            report = await cron.dispatch(now=NOON)
            assert (report.runs, report.skipped) == (1, {"locked": 1})
        assert (await cron.dispatch(now=NOON + timedelta(minutes=1))).runs == 1
        assert len(crons.cron_runs(orcheo_here)) == 2

    crons.play(scenario)


def test_two_processes_create_each_run_once(orcheo_here: Database) -> None:
    """One process at a time, and where two dispatch all the same, each run is created by one of them."""

    async def scenario() -> None:
        workspace = crons.create_workspace(orcheo_here, "a")
        for _ in range(10):
            await crons.create_trigger(workspace, expression="0 12 * * *", timezone="UTC", allow_overlapping=True)
        first, second = OrcheoCron(), OrcheoCron()
        with psycopg.connect(orcheo_here.dsn) as third:
            third.execute("SELECT pg_advisory_xact_lock(205392149)")
            assert (await first.dispatch(now=NOON)).outcome == "busy"
        assert crons.cron_runs(orcheo_here) == []
        reports = await asyncio.gather(first.dispatch(now=NOON), second.dispatch(now=NOON))
        assert sorted(report.outcome for report in reports) == ["busy", "succeeded"]
        assert len(crons.cron_runs(orcheo_here)) == 10

    crons.play(scenario)


def test_run_is_created_once_though_another_dispatches_since_the_trigger_was_read(orcheo_here: Database) -> None:
    async def scenario() -> None:
        workspace = crons.create_workspace(orcheo_here, "a")
        await crons.create_trigger(workspace, expression="0 12 * * *", timezone="UTC", allow_overlapping=True)
        ours = OrcheoCron()
        repository = ours._open()
        look = repository.get_workflow

        async def look_late(workflow_id: Any, **rest: Any) -> Any:
            # The API's own loop, which takes no lock, comes between.
            if not crons.cron_runs(orcheo_here):
                stock = crons.stock_repository(get_settings())
                await stock.dispatch_due_cron_runs(now=NOON)
                await stock.close()
            return await look(workflow_id, **rest)

        repository.get_workflow = look_late
        report = await ours.dispatch(now=NOON)
        assert (report.runs, report.skipped) == (0, {})
        assert len(crons.cron_runs(orcheo_here)) == 1

    crons.play(scenario)


@pytest.mark.parametrize("statement", ["UPDATE cron_triggers", "INSERT INTO workflow_runs"])
def test_dispatch_that_is_cut_off_in_the_middle_neither_loses_nor_doubles(
    orcheo_here: Database, statement: str
) -> None:
    async def scenario() -> None:
        workspace = crons.create_workspace(orcheo_here, "a")
        await crons.create_trigger(workspace, expression="0 12 * * *", timezone="UTC", allow_overlapping=True)
        _break_at(orcheo_here, statement)
        with pytest.raises(DatabaseError):
            await OrcheoCron().dispatch(now=NOON)
        assert crons.cron_runs(orcheo_here) == []
        assert set(crons.last_dispatched(orcheo_here).values()) == {None}
        _repair(orcheo_here)
        assert (await OrcheoCron().dispatch(now=NOON)).runs == 1
        assert (await OrcheoCron().dispatch(now=NOON)).runs == 0
        assert len(crons.cron_runs(orcheo_here)) == 1

    crons.play(scenario)


@pytest.mark.parametrize(
    "setting",
    [
        "default_transaction_isolation = 'serializable'",
        "DateStyle = 'German, DMY'",
        "TimeZone = 'Asia/Kathmandu'",
        "statement_timeout = '1ms'",
        "idle_in_transaction_session_timeout = '10ms'",
    ],
)
def test_settings_of_the_database_change_nothing(orcheo_here: Database, setting: str) -> None:
    async def scenario() -> None:
        # Orcheo's own connections, which are open by then, keep their settings.
        await crons.create_trigger(crons.create_workspace(orcheo_here, "a"), expression="0 12 * * *", timezone="UTC")
        execute(orcheo_here, f'ALTER DATABASE "{orcheo_here.name}" SET {setting}')
        report = await OrcheoCron().dispatch(now=NOON)
        assert (report.outcome, report.runs, report.skipped) == ("succeeded", 1, {})

    crons.play(scenario)


def test_workflows_without_a_trigger_cost_nothing_and_gone_ones_are_forgotten(orcheo_here: Database) -> None:
    async def scenario() -> None:
        workspace = crons.create_workspace(orcheo_here, "a")
        workflow_id = await crons.create_trigger(workspace, expression="0 12 * * *", timezone="UTC")
        cron = OrcheoCron()
        await cron.dispatch(now=NOON - timedelta(hours=1))
        assert list(cron._triggers) == [workflow_id]
        execute(orcheo_here, "DELETE FROM cron_triggers")
        await cron.dispatch(now=NOON)
        assert cron._triggers == {}
        assert crons.cron_runs(orcheo_here) == []

    crons.play(scenario)


# --- what the tests do


def _moments(start: datetime, *, hours: int, seed: str) -> list[datetime]:
    """Return when triggers are dispatched: mostly each quarter of an hour, some late by seconds, some missed."""
    chance = random.Random(seed)
    moments = [start + timedelta(minutes=15 * step, seconds=chance.choice((0, 0, 7, 41))) for step in range(hours * 4)]
    return [moment for moment in moments if chance.random() > 0.1]


async def _played_by_stock(database: Database, moments: list[datetime], *, runs_end: bool = True) -> list[list[Any]]:
    _reset(database)
    repository = crons.stock_repository(get_settings())
    try:
        return [await _step(database, repository.dispatch_due_cron_runs, at, runs_end) for at in moments]
    finally:
        await repository.close()


async def _played_by_us(database: Database, moments: list[datetime], *, runs_end: bool = True) -> list[list[Any]]:
    _reset(database)
    cron = OrcheoCron()
    return [await _step(database, cron.dispatch, at, runs_end) for at in moments]


async def _step(database: Database, dispatch: Any, at: datetime, runs_end: bool) -> list[Any]:
    """Dispatch once; return what was created, and how the triggers stand."""
    before = {run["id"] for run in crons.cron_runs(database)}
    await dispatch(now=at)
    created = [run for run in crons.cron_runs(database) if run["id"] not in before]
    if runs_end:
        crons.end_runs(database)
    stand = [(run["workflow_id"], run["scheduled_for"], run["payload"]["input_payload"]["timezone"]) for run in created]
    return [*stand, *sorted(crons.last_dispatched(database).items())] if stand else []


def _reset(database: Database) -> None:
    execute(database, "DELETE FROM workflow_runs")
    execute(database, "UPDATE cron_triggers SET last_dispatched_at = NULL")
    from orcheo_backend.app.workspace_governance import get_workspace_governance

    get_workspace_governance(refresh=True)


def _give_slot_back(workspace_id: str) -> None:
    from orcheo_backend.app.workspace_governance import get_workspace_governance

    get_workspace_governance().release_run_slot(workspace_id)


def _without_ids_and_times(payload: dict[str, Any]) -> dict[str, Any]:
    changed = {name: value for name, value in payload.items() if name not in ("id", "created_at", "updated_at")}
    changed["audit_log"] = [{**event, "at": None} for event in changed["audit_log"]]
    return changed


def _break_at(database: Database, statement: str) -> None:
    """Have the connection that executes this statement ended by the server, as a killed worker's would be."""
    kind, table = statement.split(maxsplit=1)[0], statement.rsplit(maxsplit=1)[-1]
    execute(
        database,
        "CREATE FUNCTION cut_off() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$",
    )
    execute(database, f"CREATE TRIGGER cut_off AFTER {kind} ON {table} FOR EACH ROW EXECUTE FUNCTION cut_off()")


def _repair(database: Database) -> None:
    execute(database, "DROP FUNCTION cut_off CASCADE")
