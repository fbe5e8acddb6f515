"""Real processes tell a service manager how they are, and feed its watchdog for as long as they make progress."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres, EmbeddedRedis
from tests.support.database.databases import Database, make_orcheo_tables, migrate
from tests.support.database.runs import all_are, insert_runs, read_run
from tests.support.processes.processes import Process, Stack, until
from tests.support.processes.wedges import WEDGE
from tests.support.servers.listening import Listener

_FED = "WATCHDOG=1"
_KINDS = ["beat", "dispatcher", "worker"]


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    with Listener(tmp_path) as listener:
        yield listener


def _started(stack: Stack, kind: str, listener: Listener) -> Process:
    # Fed each second, for that is how often a process looks at itself.
    watched = {"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": "2000000"}
    return stack.command(kind, **watched)


@pytest.mark.parametrize("kind", _KINDS)
def test_process_says_how_it_is_from_start_to_end(stack: Stack, listener: Listener, kind: str) -> None:
    with _started(stack, kind, listener) as process:
        said = listener.hears("READY=1")
        assert said.splitlines()[1] in {"STATUS=ticking", "STATUS=polling", "STATUS=runs: 0 of 32"}
        assert listener.count(_FED) == 0 or listener.messages[0] == said
        listener.hears(_FED, times=3)
        process.signal(signal.SIGTERM)
        stopping = listener.hears("STOPPING=1")
        # 60 s of drain, 5 s (here 1 s) of grace, and what closing takes.
        assert ("EXTEND_TIMEOUT_USEC=91000000" in stopping) == (kind == "worker")
        assert process.exit_code() == 0


@pytest.mark.parametrize("kind", _KINDS)
def test_process_that_hangs_as_a_whole_feeds_no_more(stack: Stack, listener: Listener, kind: str) -> None:
    with _started(stack, kind, listener) as process:
        listener.hears(_FED, times=2)
        process.signal(signal.SIGSTOP)
        until(
            lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", what="it hangs"
        )
        fed = listener.count(_FED)
        with pytest.raises(pytest.fail.Exception):
            until(lambda: listener.count(_FED) > fed + 1, what="it feeds", seconds=4)
        process.signal(signal.SIGCONT)
        listener.hears(_FED, times=fed + 2)


def test_worker_says_how_many_runs_it_executes(database: Database, stack: Stack, listener: Listener) -> None:
    insert_runs(database, 3, inputs={"do": "wait", "seconds": 6})
    with stack.running("dispatcher"), _started(stack, "worker", listener) as worker:
        listener.hears("STATUS=runs: 3 of 32")
        worker.signal(signal.SIGTERM)
        listener.hears("STATUS=draining, runs left: 3")
        assert worker.exit_code() == 0
    assert all_are(database, "succeeded")


@pytest.mark.parametrize("kind", _KINDS)
def test_process_whose_redis_is_away_is_fed_on(
    database: Database, redis_server: EmbeddedRedis, tmp_path: Path, listener: Listener, kind: str
) -> None:
    stack = Stack(database, redis_server.url, tmp_path / "side-effects")
    with _started(stack, kind, listener) as process:
        listener.hears(_FED)
        redis_server.stop()
        process.saw("broker_unavailable")
        listener.hears(_FED, times=listener.count(_FED) + 5)
        if kind in {"beat", "dispatcher"}:
            listener.hears("STATUS=Redis is unavailable")
        redis_server.start()
        process.saw("broker_reconnected")


def test_dispatcher_whose_postgres_is_away_is_fed_on(
    postgres_server: EmbeddedPostgres, redis_url: str, tmp_path: Path, listener: Listener
) -> None:
    database = Database("postgres", postgres_server.url)
    make_orcheo_tables(database, redis_url)
    migrate(database)
    stack = Stack(database, redis_url, tmp_path / "side-effects")
    with _started(stack, "dispatcher", listener) as process:
        listener.hears(_FED)
        postgres_server.stop()
        process.saw("database_unavailable")
        listener.hears("STATUS=Postgres is unavailable")
        listener.hears(_FED, times=listener.count(_FED) + 5)


def test_worker_whose_consumer_is_beyond_help_is_not_fed_and_says_that_it_ends(
    database: Database, stack: Stack, listener: Listener
) -> None:
    insert_runs(database)
    watched = {"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": "2000000"}
    with (
        stack.running("dispatcher", ORCHEO_DISPATCH_LEASE="5"),
        Process(["-m", "tests.support.processes.wedges"], stack.environment_of("worker", **watched)) as worker,
    ):
        listener.hears("READY=1")
        until(lambda: all_are(database, "succeeded"), what="the worker executes runs")
        worker.signal(WEDGE)
        # The event loop of Celery hangs when it has turned once more.
        *_, waiting = insert_runs(database, 3)
        worker.saw("remedy=restart_connection")
        fed = listener.count(_FED)
        listener.hears("STOPPING=1")
        assert listener.count(_FED) <= fed + 1
        assert worker.exit_code() == 1
        assert read_run(database, waiting)["status"] in {"pending", "running"}
