"""Orcheo's API and our processes, set to resume runs; servers of their own for the tests that kill them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres, EmbeddedRedis
from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from tests.resume.ground import SETTINGS, Ground, workers, workflows_of
from tests.resume.report import ROWS, Row, lines_of
from tests.support.database.databases import create, make_orcheo_tables, migrate
from tests.support.orcheo.orcheo_stack import ApiOnDatabase, stack_beside, start_afresh
from tests.support.processes.processes import Stack
from tests.support.servers.servers import scratch


@pytest.fixture(scope="module")
def stack(orcheo: OrcheoApi) -> Iterator[Stack]:
    """Our processes beside the API; a dispatcher is running."""
    start_afresh(orcheo)
    found = stack_beside(orcheo)
    found.environment |= SETTINGS
    with found.running("dispatcher"):
        yield found


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Postgres and Redis that a test may kill, Orcheo's API on them, a dispatcher and workers."""
    home: Path = tmp_path_factory.mktemp("orcheo")
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres", durable=False))
        redis = stack.enter_context(EmbeddedRedis(folder / "redis"))
        with psycopg.connect(postgres.url, autocommit=True) as admin:
            database = create(admin, postgres.url)
        make_orcheo_tables(database, redis.url)
        migrate(database)
        api = stack.enter_context(ApiOnDatabase(database, redis.url, home))
        api.limit_runs(1000)
        start_afresh(api)
        ours = stack_beside(api)
        ours.environment |= SETTINGS
        stack.enter_context(ours.running("dispatcher"))
        yield Ground(postgres, redis, api, ours, stack.enter_context(workers(ours)), workflows_of(api))


@pytest.fixture
def rows(pytestconfig: pytest.Config) -> list[Row]:
    """The rows of the table that is printed at the end of the session."""
    return pytestconfig.stash.setdefault(ROWS, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was repeated, by shape and by what was killed."""
    if ROWS in config.stash:
        for line in lines_of(config.stash[ROWS]):
            terminalreporter.write_line(line)
