"""LISTEN/NOTIFY: where `migrate --notify` was called an insert wakes dispatchers, and can fail no more than before."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from orcheo_dispatch.dispatcher.wakeups.listen import Hearing, NotifyListener
from orcheo_dispatch.ops.host.check import check
from orcheo_dispatch.ops.host.findings import Finding
from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres
from orcheo_dispatch.shared.errors import DatabaseError, SettingsError
from orcheo_dispatch.shared.schema.api_table import CHANNEL, TRIGGER, set_notify
from orcheo_dispatch.shared.schema.migrate import migrate, migrate_back
from orcheo_dispatch.shared.schema.revision import newest_revision
from tests.support.database.databases import Database
from tests.support.database.runs import everything, execute, insert_runs, ledger, nth_claim, settings_for, store_of
from tests.support.processes.processes import Process, Stack, until

_TRIGGERS = f"SELECT tgname FROM pg_trigger WHERE tgrelid = 'workflow_runs'::regclass AND tgname = '{TRIGGER}'"
_FUNCTIONS = "SELECT proname FROM pg_proc WHERE proname = 'wake' AND pronamespace = 'orcheo_dispatch'::regnamespace"
_ALL_DAY = "3600"
_FEWEST_PAGES = 64


@pytest.fixture
def notifying(database: Database) -> Database:
    """A database whose inserts notify."""
    migrate(settings_for(database), notify=True)
    return database


class Heard:
    """What a listener called back for."""

    def __init__(self, listener: NotifyListener) -> None:
        self.listener = listener
        self.times = 0
        self.changes: list[bool] = []

    def note(self, *, listening: bool) -> None:
        """Remember a change."""
        self.changes.append(listening)

    def again(self, since: int) -> None:
        """Wait until something was heard since then."""
        until(lambda: self.times > since, what="a notification")

    def becomes(self, hearing: Hearing) -> None:
        """Wait until the listener is in this state."""
        until(lambda: self.listener.hearing is hearing, what=hearing.value)


@contextmanager
def _listening(database: Database, **overrides: Any) -> Iterator[Heard]:
    heard: Heard

    def on_notify() -> None:
        heard.times += 1

    with store_of(database) as (_, engine):
        listener = NotifyListener(
            settings_for(database, **overrides),
            engine,
            on_notify=on_notify,
            on_change=lambda listening: heard.note(listening=listening),
            look_seconds=0.1,
        )
        heard = Heard(listener)
        listener.start()
        try:
            yield heard
        finally:
            listener.stop()
            assert not listener._thread.is_alive()


def test_insert_wakes_the_dispatcher_long_before_a_tick(notifying: Database, redis_url: str, tmp_path: Path) -> None:
    stack = Stack(notifying, redis_url, tmp_path / "effects")
    with stack.running("dispatcher", ORCHEO_DISPATCH_POLL_INTERVAL=_ALL_DAY) as dispatcher:
        dispatcher.saw("listening channel=orcheo_dispatch")
        (run_id,) = insert_runs(notifying)
        dispatcher.saw("published=1")
        assert ledger(notifying, run_id)["state"] == "claimed"


def _published(dispatcher: Process) -> int:
    return sum(map(int, re.findall(r" polled .* published=(\d+)", dispatcher.log)))


def test_every_dispatcher_is_woken_and_one_claims(notifying: Database, redis_url: str, tmp_path: Path) -> None:
    stack = Stack(notifying, redis_url, tmp_path / "effects")
    with ExitStack() as running:
        dispatchers = [
            running.enter_context(stack.running("dispatcher", ORCHEO_DISPATCH_POLL_INTERVAL=_ALL_DAY)) for _ in range(3)
        ]
        for dispatcher in dispatchers:
            dispatcher.saw("listening channel=orcheo_dispatch")
        ids = [insert_runs(notifying)[0] for _ in range(5)]
        # The ledger may say so later, where another dispatcher looks at the row at this moment.
        until(lambda: sum(map(_published, dispatchers)) == 5, what="all published")
        assert {nth_claim(ledger(notifying, run_id)["fence"]) for run_id in ids} == {1}


def test_without_the_trigger_nothing_is_held_open_and_nothing_said(database: Database) -> None:
    with _listening(database) as heard:
        insert_runs(database)
        until(lambda: not _listeners(database), what="no connection of the listener")
        assert (heard.times, heard.changes) == (0, [])


def test_trigger_that_comes_is_listened_to_and_one_that_goes_is_let_go(database: Database) -> None:
    settings = settings_for(database)
    with _listening(database) as heard:
        migrate(settings, notify=True)
        heard.becomes(Hearing.ON)
        before = heard.times
        insert_runs(database)
        heard.again(before)
        migrate(settings, notify=False)
        heard.becomes(Hearing.OFF)
        until(lambda: not _listeners(database), what="no connection of the listener")
        assert heard.changes == [True, False]


def test_trigger_that_somebody_switched_off_counts_as_none(notifying: Database) -> None:
    with _listening(notifying) as heard:
        heard.becomes(Hearing.ON)
        execute(notifying, f"ALTER TABLE workflow_runs DISABLE TRIGGER {TRIGGER}")
        heard.becomes(Hearing.OFF)


def test_killed_connection_is_made_anew_and_what_came_meanwhile_wakes(notifying: Database) -> None:
    with _listening(notifying) as heard:
        heard.becomes(Hearing.ON)
        before = heard.times
        (pid,) = _listeners(notifying)
        execute(notifying, "SELECT pg_terminate_backend(%s)", pid)
        heard.again(before)
        until(lambda: _listeners(notifying) not in ([], [pid]), what="another connection")


def test_listener_hears_again_after_postgres_was_killed(
    postgres_server: EmbeddedPostgres,
) -> None:
    database = _with_a_table_that_notifies(postgres_server)
    with _listening(database) as heard:
        heard.becomes(Hearing.ON)
        postgres_server.kill()
        heard.becomes(Hearing.AWAY)
        postgres_server.start()
        heard.becomes(Hearing.ON)
        before = heard.times
        execute(database, "INSERT INTO workflow_runs VALUES ('x')")
        heard.again(before)
        assert heard.changes == [True, False, True]


def test_way_to_another_database_is_not_taken_for_listening(notifying: Database, empty_database: Database) -> None:
    with _listening(notifying, listen_dsn=empty_database.dsn) as heard:
        heard.becomes(Hearing.ELSEWHERE)


def test_way_that_leads_nowhere_is_said(notifying: Database) -> None:
    with _listening(notifying, listen_dsn="postgresql://nobody@127.0.0.1:1/nothing") as heard:
        heard.becomes(Hearing.AWAY)


def test_many_rows_of_one_transaction_are_one_notification(notifying: Database) -> None:
    with psycopg.connect(notifying.dsn, autocommit=True) as listening:
        listening.execute(f"LISTEN {CHANNEL}")
        with psycopg.connect(notifying.dsn) as api:
            for _ in range(3):
                api.execute(
                    "INSERT INTO workflow_runs SELECT gen_random_uuid(), workflow_id, workflow_version_id, status,"
                    " triggered_by, payload, created_at, updated_at, workspace_id"
                    " FROM workflow_runs, generate_series(1, 5)"
                )
            api.execute("NOTIFY last_one")
            listening.execute("LISTEN last_one")
            api.commit()
        channels = [(each.channel, each.payload) for each in listening.notifies(timeout=10, stop_after=2)]
    assert channels == [(CHANNEL, ""), ("last_one", "")]


def test_transactions_that_insert_at_once_do_not_wait_for_one_another(notifying: Database) -> None:
    """Those that notify commit one after the other, in the whole cluster: so only one does, and stands for the rest."""
    with _listening(notifying) as heard, psycopg.connect(notifying.dsn) as first:
        heard.becomes(Hearing.ON)
        _insert(first)
        before = heard.times
        with psycopg.connect(notifying.dsn, autocommit=True) as other:
            other.execute(f"LISTEN {CHANNEL}")
            insert_runs(notifying)
            first.commit()
            assert len(list(other.notifies(timeout=10, stop_after=1))) == 1
            # Once for the notification, and once for whoever was silent and committed after it.
            heard.again(before + 1)
            assert list(other.notifies(timeout=0)) == []


def test_who_may_insert_needs_no_right_of_ours(notifying: Database) -> None:
    """The API's role may be another than the owner, and may not even enter our schema."""
    execute(notifying, "CREATE ROLE test_inserts_only")
    try:
        execute(notifying, "GRANT INSERT ON workflow_runs TO test_inserts_only")
        with psycopg.connect(notifying.dsn, autocommit=True) as listening:
            listening.execute(f"LISTEN {CHANNEL}")
            with psycopg.connect(notifying.dsn) as api:
                api.execute("SET ROLE test_inserts_only")
                # Somebody's functions of the same names are not taken.
                api.execute("SET search_path = pg_temp, public")
                _insert(api)
                api.commit()
            assert [each.channel for each in listening.notifies(timeout=10, stop_after=1)] == [CHANNEL]
    finally:
        execute(notifying, "DROP OWNED BY test_inserts_only")
        execute(notifying, "DROP ROLE test_inserts_only")


def test_full_queue_of_notifications_does_not_fail_an_insert(postgres_server: EmbeddedPostgres) -> None:
    """Where the queue is full, the commit of whoever notifies fails: a session that listens and sleeps fills it."""
    database = _with_a_table_that_notifies(postgres_server)
    execute(database, f"ALTER SYSTEM SET max_notify_queue_pages = {_FEWEST_PAGES}")
    postgres_server.stop()
    postgres_server.start()
    with psycopg.connect(database.dsn) as sleeper:
        sleeper.execute("LISTEN nothing")
        sleeper.commit()
        sleeper.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError, match="too many notifications"):
            execute(database, "SELECT pg_notify('nothing', repeat('x', 7000) || n) FROM generate_series(1, 100) AS n")
        execute(database, "INSERT INTO workflow_runs VALUES ('x')")
    assert everything(database, "SELECT id FROM workflow_runs") == [{"id": "x"}]


def test_notify_may_be_switched_on_and_off_again_and_again(orcheo_database: Database) -> None:
    settings = settings_for(orcheo_database)
    assert [migrate(settings, notify=each).notify for each in (None, True, True, None, False, False, None)] == [
        *(False, True, True, True, False, False, False)
    ]
    assert everything(orcheo_database, _TRIGGERS) == everything(orcheo_database, _FUNCTIONS) == []


def test_older_release_finds_no_trigger(notifying: Database) -> None:
    done = migrate_back(settings_for(notifying), newest_revision())
    assert not done.notify
    assert everything(notifying, _TRIGGERS) == everything(notifying, _FUNCTIONS) == []


def test_trigger_goes_with_our_schema(notifying: Database) -> None:
    """Who removes us by hand, as the runbook says, must not leave a trigger that fails every insert."""
    execute(notifying, "DROP SCHEMA orcheo_dispatch CASCADE")
    assert everything(notifying, _TRIGGERS) == []
    assert len(insert_runs(notifying)) == 1


def test_inserts_of_the_api_do_not_queue_behind_the_migration(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that has read the table and stays open keeps the lock of DROP TRIGGER away; others go on."""
    from orcheo_dispatch.shared.database import ddl

    settings = settings_for(database)
    migrate(settings, notify=True)
    monkeypatch.setattr(ddl, "PATIENCE_SECONDS", 2)
    failures: list[DatabaseError] = []

    def remove() -> None:
        try:
            migrate(settings, notify=False)
        except DatabaseError as error:
            failures.append(error)

    with psycopg.connect(database.dsn) as reader:
        reader.execute("SELECT count(*) FROM workflow_runs")
        removing = threading.Thread(target=remove)
        removing.start()
        while removing.is_alive():
            assert len(insert_runs(database)) == 1
        removing.join()
    (error,) = failures
    assert "workflow_runs: locked by others for 2 s" in str(error)
    assert not migrate(settings, notify=False).notify


def test_command_takes_one_of_to_and_notify(database: Database, redis_url: str, tmp_path: Path) -> None:
    stack = Stack(database, redis_url, tmp_path / "effects")
    with stack.command("migrate", "--notify") as process:
        assert process.exit_code() == 0
        process.finish()
        assert "wake-up by NOTIFY: on" in process.log
    with stack.command("migrate", "--to", "0001", "--notify") as process:
        assert process.exit_code() == SettingsError.exit_code
        process.finish()
        assert "--to and --notify" in process.log


def test_check_says_whether_notify_is_on_and_heard(database: Database, redis_url: str) -> None:
    def finding(**overrides: Any) -> Finding:
        found = check(settings_for(database, redis_url, **overrides))
        return next(each for each in found if each.what == "wake-up by NOTIFY")

    assert (finding().grade, finding().found[:3]) == ("ok", "off")
    migrate(settings_for(database), notify=True)
    assert (finding().grade, finding().found) == ("ok", "on, received by ORCHEO_POSTGRES_DSN")
    away = finding(listen_dsn="postgresql://nobody@127.0.0.1:1/nothing")
    assert (away.grade, away.found.partition(":")[0]) == ("warn", "ORCHEO_DISPATCH_LISTEN_DSN")


def _with_a_table_that_notifies(server: EmbeddedPostgres) -> Database:
    database = Database("postgres", server.url)
    execute(database, "CREATE TABLE workflow_runs (id text, status text)")
    execute(database, "CREATE SCHEMA orcheo_dispatch")
    with store_of(database) as (_, engine):
        set_notify(engine, on=True)
    return database


def _listeners(database: Database) -> list[int]:
    rows = everything(
        database,
        "SELECT pid FROM pg_stat_activity WHERE datname = %s AND application_name = 'orcheo-dispatch listen'",
        database.name,
    )
    return [row["pid"] for row in rows]


def _state(database: Database, run_id: str) -> str | None:
    rows = everything(database, "SELECT state FROM orcheo_dispatch.dispatch WHERE run_id = %s", run_id)
    return rows[0]["state"] if rows else None


def _insert(api: psycopg.Connection[Any]) -> None:
    api.execute(
        "INSERT INTO public.workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload,"
        " created_at, updated_at) VALUES (gen_random_uuid(), 'w', 'v', 'pending', 'cli', '{}', now(), now())"
    )
