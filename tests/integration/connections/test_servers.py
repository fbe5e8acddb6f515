"""The servers and databases that all other tests stand on."""

from __future__ import annotations

import psycopg
import pytest
import redis

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres, EmbeddedRedis
from orcheo_dispatch.shared.errors import BrokerError, DatabaseError
from tests.support.database.databases import Database
from tests.support.servers.servers import Servers

_TABLES = "SELECT table_schema || '.' || table_name FROM information_schema.tables"
_OLDEST_POSTGRES = 13_00_00


def test_servers_are_recent_enough(servers: Servers) -> None:
    with psycopg.connect(servers.postgres_url) as connection:
        assert connection.info.server_version >= _OLDEST_POSTGRES
        assert connection.execute("SHOW max_connections").fetchone() is not None
    with redis.Redis.from_url(servers.redis_url) as client:
        assert int(client.info("server")["redis_version"].split(".")[0]) >= 6


def test_session_redis_evicts_nothing(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.info("memory")["maxmemory_policy"] == "noeviction"


@pytest.mark.parametrize("attempt", [1, 2])
def test_clone_shows_nothing_of_another_test(database: Database, attempt: int) -> None:
    with psycopg.connect(database.dsn) as connection:
        assert connection.execute("SELECT to_regclass('left_over')").fetchone() == (None,)
        connection.execute("CREATE TABLE left_over ()")


def test_clone_is_dropped_though_someone_is_connected(database: Database) -> None:
    connection = psycopg.connect(database.dsn)
    connection.execute("SELECT 1")
    assert connection.info.dbname == database.name
    connection.close()


def test_clones_hold_what_their_names_say(
    database: Database, orcheo_database: Database, empty_database: Database
) -> None:
    full, without_ours, empty = (_tables(each) for each in (database, orcheo_database, empty_database))

    for of_orcheo in ("workflow_runs", "execution_history", "workspaces", "checkpoints", "store"):
        assert f"public.{of_orcheo}" in full & without_ours
    assert "orcheo_dispatch.dispatch" in full
    assert not any(name.startswith("orcheo_dispatch.") for name in without_ours)
    assert not any(name.startswith(("public.", "orcheo_dispatch.")) for name in empty)


@pytest.mark.parametrize("attempt", [1, 2])
def test_redis_is_empty_for_each_test(redis_url: str, attempt: int) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left over", attempt)


def test_password_of_database_does_not_show_in_repr(database: Database) -> None:
    assert database.dsn not in repr(database)


def test_killed_postgres_serves_its_committed_rows_again(postgres_server: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres_server.url) as connection:
        connection.execute("CREATE TABLE kept (number int)")
        connection.execute("INSERT INTO kept VALUES (1)")

    with psycopg.connect(postgres_server.url) as severed:
        severed.execute("INSERT INTO kept VALUES (2)")
        postgres_server.kill()
        with pytest.raises(psycopg.OperationalError):
            severed.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(postgres_server.url)
        postgres_server.start()

    with psycopg.connect(postgres_server.url) as connection:
        assert connection.execute("SELECT number FROM kept").fetchall() == [(1,)]


def test_killed_redis_comes_back_empty(redis_server: EmbeddedRedis) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        client.set("key", "value")
        redis_server.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("key")
        redis_server.start()
        assert client.dbsize() == 0


def test_postgres_that_cannot_start_says_why(postgres_server: EmbeddedPostgres) -> None:
    postgres_server.stop()
    (postgres_server.directory / "data" / "PG_VERSION").write_text("1\n")
    with pytest.raises(DatabaseError, match="incompatible with server"):
        postgres_server.start()
    assert postgres_server.pid is None


def test_redis_that_cannot_start_says_why(redis_server: EmbeddedRedis, servers: Servers) -> None:
    redis_server.stop()
    rival = EmbeddedRedis(redis_server.directory)
    rival.port = redis_server.port
    with rival, pytest.raises(BrokerError, match="in use"):
        redis_server.start()


def _tables(database: Database) -> set[str]:
    with psycopg.connect(database.dsn) as connection:
        return {str(name) for (name,) in connection.execute(_TABLES)}
