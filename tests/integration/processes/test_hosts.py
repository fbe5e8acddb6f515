"""Several hosts in the DSN: whichever takes writes is used, and where none does that is said in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from orcheo_dispatch.ops.host.check import check, exit_code
from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres
from tests.support.database.databases import Database, make_orcheo_tables, migrate
from tests.support.database.runs import all_are, execute, insert_runs, settings_for
from tests.support.processes.processes import Stack, until
from tests.support.servers.servers import scratch

_NOBODY = "127.0.0.1:1"


@pytest.fixture
def pair(redis_url: str) -> Iterator[tuple[Database, Database]]:
    """A database, and one on another server for the same user, which is read-only."""
    with ExitStack() as stack:
        first = stack.enter_context(EmbeddedPostgres(stack.enter_context(scratch()), durable=False))
        second = stack.enter_context(EmbeddedPostgres(stack.enter_context(scratch()), durable=False))
        primary, standby = Database("postgres", first.url), Database("postgres", second.url)
        password = urlsplit(primary.dsn).password
        execute(standby, f"ALTER ROLE postgres PASSWORD '{password}'")
        standby = Database("postgres", primary.dsn.replace(_address(primary), _address(standby)))
        execute(standby, "ALTER SYSTEM SET default_transaction_read_only = on")
        execute(standby, "SELECT pg_reload_conf()")
        make_orcheo_tables(primary, redis_url)
        migrate(primary)
        yield primary, standby


def _address(database: Database) -> str:
    return urlsplit(database.dsn).netloc.rpartition("@")[2]


def _over(primary: Database, *addresses: str) -> Database:
    dsn = primary.dsn.replace(_address(primary), ",".join(addresses))
    return Database(primary.name, f"{dsn}?target_session_attrs=read-write")


def test_host_that_takes_writes_is_found(pair: tuple[Database, Database], redis_url: str, tmp_path: Path) -> None:
    primary, standby = pair
    both = _over(primary, _NOBODY, _address(standby), _address(primary))
    assert exit_code(check(settings_for(both, redis_url, executor="tests.support.runners.executors:play"))) == 0
    insert_runs(primary, 3)
    stack = Stack(both, redis_url, tmp_path / "effects")
    with stack.running("dispatcher"), stack.running("worker"):
        until(lambda: all_are(primary, "succeeded"), what="all runs succeeded")


def test_no_host_that_takes_writes_is_refused(pair: tuple[Database, Database], redis_url: str) -> None:
    primary, standby = pair
    for hosts in ((_address(standby),), (_NOBODY, _address(standby))):
        none = _over(primary, *hosts)
        assert exit_code(check(settings_for(none, redis_url))) == 3
        with Stack(none, redis_url, Path("/dev/null")).command("dispatcher") as process:
            assert process.exit_code() == 3
            process.finish()
        assert len(process.log.strip().splitlines()) == 1, process.log
        assert "postgres:" not in process.log
