"""Fixtures: real servers, a database a test, and Orcheo's real API."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres, EmbeddedRedis
from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from tests.support.database.comparing import RolledBack, transactions
from tests.support.database.databases import Database, cloned, close, grant, make_orcheo_tables, migrate
from tests.support.database.roles import Roles, made
from tests.support.orcheo.orcheo_stack import ApiOnDatabase
from tests.support.servers.servers import Choice, Lane, Servers, choose, running, scratch, versions_of

type Admin = psycopg.Connection[Any]

_CHOICE = pytest.StashKey[Choice]()
_VERSIONS = pytest.StashKey[str]()
# Logical databases of the session's Redis: tests flush the one, the API of the session counts its slots in the other.
_TEST_REDIS, _API_REDIS = 0, 1
_ORCHEO_RUNS = 1000


def pytest_configure(config: pytest.Config) -> None:
    """Choose the servers, so that a wrong choice ends the session before it starts."""
    _take_interrupts()
    config.stash[_CHOICE] = choose(os.environ)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes share the tests; one where they would share servers that were given by URL."""
    return 1 if choose(os.environ).lane is Lane.URL else (os.cpu_count() or 1) + 1


def pytest_report_header(config: pytest.Config) -> str:
    """Say which servers the session runs on, and why."""
    return str(config.stash[_CHOICE])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which versions the servers reported, where any were started."""
    if versions := config.stash.get(_VERSIONS, None):
        terminalreporter.write_line(f"servers: {config.stash[_CHOICE].lane} {versions}")


@pytest.fixture(scope="session")
def servers(pytestconfig: pytest.Config) -> Iterator[Servers]:
    """The session's Postgres and Redis."""
    with running(pytestconfig.stash[_CHOICE].lane, os.environ) as started:
        pytestconfig.stash[_VERSIONS] = versions_of(started)
        yield started


@pytest.fixture(scope="session")
def admin(servers: Servers) -> Iterator[Admin]:
    """A connection that may create databases."""
    with psycopg.connect(servers.postgres_url, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def granted(admin: Admin, servers: Servers) -> Iterator[Roles | str]:
    """Roles of least privilege, or why this server lets the session have none."""
    with made(admin, servers.postgres_url) as roles:
        yield roles


@pytest.fixture(scope="session")
def orcheo_template(admin: Admin, servers: Servers) -> Iterator[Database]:
    """A closed database with Orcheo's tables and one workspace, about 8 s to make."""
    with cloned(admin, servers) as template:
        make_orcheo_tables(template, _redis_url(servers, _API_REDIS))
        close(admin, template)
        yield template


@pytest.fixture(scope="session")
def template(admin: Admin, servers: Servers, orcheo_template: Database, granted: Roles | str) -> Iterator[Database]:
    """A closed database with Orcheo's tables and our schema, and with rights for the session's roles."""
    roles = granted if isinstance(granted, Roles) else None
    with cloned(admin, servers, orcheo_template.name) as clone:
        migrate(clone)
        if roles:
            grant(clone, roles)
        close(admin, clone)
        yield replace(clone, roles=roles)


@pytest.fixture
def database(admin: Admin, servers: Servers, template: Database) -> Iterator[Database]:
    """A database of the test's own: Orcheo's tables, one workspace, our schema, rights for the session's roles."""
    with cloned(admin, servers, template.name) as clone:
        yield replace(clone, roles=template.roles)


@pytest.fixture(scope="module")
def rolled_back(admin: Admin, servers: Servers, template: Database) -> Iterator[RolledBack]:
    """What opens a transaction on a database of the module's own, and rolls it back in the end."""
    with cloned(admin, servers, template.name) as clone, transactions(clone) as opened:
        yield opened


@pytest.fixture
def roles(granted: Roles | str) -> Roles:
    """The session's roles of least privilege."""
    if isinstance(granted, str):
        pytest.skip(granted)
    return granted


@pytest.fixture
def orcheo_database(admin: Admin, servers: Servers, orcheo_template: Database) -> Iterator[Database]:
    """A database of the test's own: Orcheo's tables and one workspace, without our schema."""
    with cloned(admin, servers, orcheo_template.name) as clone:
        yield clone


@pytest.fixture
def empty_database(admin: Admin, servers: Servers) -> Iterator[Database]:
    """A database of the test's own without any table."""
    with cloned(admin, servers) as clone:
        yield clone


@pytest.fixture
def redis_url(servers: Servers) -> str:
    """An empty logical database of the session's Redis."""
    return _flushed(servers, _TEST_REDIS)


@pytest.fixture
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """A Postgres that the test may stop and kill."""
    with scratch() as folder, EmbeddedPostgres(folder, durable=False) as server:
        yield server


@pytest.fixture
def redis_server() -> Iterator[EmbeddedRedis]:
    """A Redis that the test may stop and kill."""
    with scratch() as folder, EmbeddedRedis(folder) as server:
        yield server


@pytest.fixture(scope="session")
def orcheo(
    admin: Admin, servers: Servers, template: Database, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OrcheoApi]:
    """Orcheo's real API, one a session, on a database and a logical Redis database that acceptance tests share."""
    home: Path = tmp_path_factory.mktemp("orcheo")
    with (
        cloned(admin, servers, template.name) as shared_database,
        ApiOnDatabase(replace(shared_database, roles=template.roles), _flushed(servers, _API_REDIS), home) as api,
    ):
        api.limit_runs(_ORCHEO_RUNS)
        yield api


def _take_interrupts() -> None:
    """Undo what a shell does for its background jobs: processes under test would inherit that signals are ignored."""
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, default)


def _flushed(servers: Servers, number: int) -> str:
    url = _redis_url(servers, number)
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


def _redis_url(servers: Servers, number: int) -> str:
    return f"{servers.redis_url.rpartition('/')[0]}/{number}"
