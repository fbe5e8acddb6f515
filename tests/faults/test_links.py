"""The proxy does to connections what it says, and a Redis can have a full disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from tests.faults.full_disk import FillableRedis
from tests.faults.links import Links, Server
from tests.support.servers.servers import Servers, scratch

SHORT_SECONDS = 0.5


@pytest.fixture
def links(servers: Servers, tmp_path: Path) -> Iterator[Links]:
    urls = {Server.POSTGRES: servers.postgres_url, Server.REDIS: servers.redis_url, Server.SLOTS: servers.redis_url}
    with Links(["one", "other"], urls, tmp_path / "proxy.log") as made:
        yield made


@pytest.fixture
def client(links: Links) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(links.url("one", Server.REDIS), socket_timeout=SHORT_SECONDS, retry=None) as made:
        assert made.ping()
        yield made


def test_link_carries_both_servers(links: Links, client: redis.Redis) -> None:
    with psycopg.connect(links.url("one", Server.POSTGRES)) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert client.echo("hello") == b"hello"


def test_dropped_connection_is_reset_and_a_new_one_is_taken(links: Links) -> None:
    with psycopg.connect(links.url("one", Server.POSTGRES)) as connection:
        links.drop(Server.POSTGRES)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    psycopg.connect(links.url("one", Server.POSTGRES)).close()


def test_slow_link_is_late_and_keeps_the_order(links: Links, client: redis.Redis) -> None:
    links.delay(Server.REDIS, 0.1)
    began = time.monotonic()
    assert [client.echo(str(n)) for n in range(3)] == [b"0", b"1", b"2"]
    assert time.monotonic() - began > 0.6
    links.heal(Server.REDIS)
    assert client.echo("quick") == b"quick"


def test_silent_link_delivers_late_what_was_held_back(links: Links) -> None:
    links.hold(Server.REDIS)
    with redis.Redis.from_url(links.url("one", Server.REDIS), socket_timeout=SHORT_SECONDS, retry=None) as client:
        with pytest.raises(redis.exceptions.TimeoutError):
            client.ping()
    links.heal(Server.REDIS)
    with redis.Redis.from_url(links.url("one", Server.REDIS), socket_timeout=SHORT_SECONDS) as client:
        assert client.ping()


def test_silence_of_one_process_is_not_anothers(links: Links, client: redis.Redis) -> None:
    links.hold(Server.REDIS, "other")
    assert client.ping()
    with redis.Redis.from_url(links.url("other", Server.REDIS), socket_timeout=SHORT_SECONDS, retry=None) as other:
        with pytest.raises(redis.exceptions.TimeoutError):
            other.ping()


def test_half_closed_connection_ends_at_the_server_and_is_silent_here(links: Links, servers: Servers) -> None:
    with psycopg.connect(servers.postgres_url, autocommit=True) as watch:
        connection = psycopg.connect(links.url("one", Server.POSTGRES))
        backend = connection.info.backend_pid
        links.half_close(Server.POSTGRES)
        deadline = time.monotonic() + 10
        while watch.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (backend,)).rowcount:
            assert time.monotonic() < deadline
        assert not connection.closed
        links.heal(Server.POSTGRES)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
        connection.close()


def test_full_disk_refuses_writes_until_there_is_room_again() -> None:
    with scratch() as folder, FillableRedis(folder) as server, redis.Redis.from_url(server.url) as client:
        client.set("before", "kept")
        server.fill_disk()
        with pytest.raises(redis.exceptions.ResponseError, match="MISCONF"):
            client.set("key", "value")
        assert client.get("before") == b"kept"
        server.empty_disk()
        client.set("key", "value")
        assert server.pid is not None
