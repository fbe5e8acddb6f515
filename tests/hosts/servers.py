"""Redis, a Postgres primary and its synchronous standby, each on its host."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import psycopg

from orcheo_dispatch.ops.sandbox.binaries import redis_binary
from orcheo_dispatch.ops.sandbox.child import launch
from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres, EmbeddedRedis
from tests.faults import history
from tests.hosts.network import Network
from tests.support.database.databases import Database, create, make_orcheo_tables, migrate

PRIMARY, STANDBY, REDIS = "primary", "standby", "redis"
_SUBNET = "10.77.0.0/16"
_PROMOTION_SECONDS = 30
_READY = frozenset({"ready", "standby"})
# The primary gives up on a standby that does not answer after these seconds, and the standby on the primary.
_REPLICATION = {"wal_sender_timeout": "3s", "wal_receiver_timeout": "3s", "wal_retrieve_retry_interval": "500ms"}
_ACCESS = f"host all all {_SUBNET} scram-sha-256\nhost replication all {_SUBNET} scram-sha-256\n"
_CLIENT = "target_session_attrs=read-write&connect_timeout=2&tcp_user_timeout=3000"
"""What a client of both needs: to find the one that takes writes, and to give up on one that does not answer."""


class PostgresOnHost(EmbeddedPostgres):
    """Listens on all addresses of its host; `data` is copied from a server that was stopped."""

    def __init__(self, directory: Path, like: Path) -> None:
        super().__init__(directory, durable=False)
        self.directory.mkdir(parents=True)
        for name in ("data", "password"):
            subprocess.run(["cp", "--archive", str(like / name), str(self.directory / name)], check=True)
        with (self._data / "pg_hba.conf").open("a") as file:
            file.write(_ACCESS)
        self._settings |= {"listen_addresses": "*", **_REPLICATION}

    @property
    def password(self) -> str:
        """Return the password of user `postgres`."""
        return self._password()

    def follow(self, address: str, port: int) -> None:
        """Be a standby of the server there from the next start on."""
        connection = f"host={address} port={port} user=postgres password={self.password} application_name=standby"
        with (self._data / "postgresql.auto.conf").open("a") as file:
            file.write(f"primary_conninfo = '{connection} connect_timeout=2 tcp_user_timeout=3000'\n")
        (self._data / "standby.signal").touch()

    def _ready(self, process: subprocess.Popen[bytes]) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() in _READY


class RedisOnHost(EmbeddedRedis):
    """Listens on all addresses of its host."""

    def _launch(self) -> subprocess.Popen[bytes]:
        options = ["--bind", "0.0.0.0", "--protected-mode", "no", "--port", str(self.port), "--save", ""]
        options += ["--dir", str(self.directory), "--appendonly", "no", "--maxmemory-policy", "noeviction"]
        return launch([str(redis_binary()), *options], log=self.log, death_signal=self.death_signal)


@dataclass(frozen=True, slots=True)
class Template:
    """The files of a stopped server with a database that has Orcheo's tables and our schema."""

    folder: Path
    database: str


@contextmanager
def template(folder: Path) -> Iterator[Template]:
    """Make it in `folder`, which is removed afterwards."""
    try:
        with ExitStack() as stack:
            postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres", durable=False))
            redis = stack.enter_context(EmbeddedRedis(folder / "redis"))
            with psycopg.connect(postgres.url, autocommit=True) as admin:
                database: Database = create(admin, postgres.url)
            make_orcheo_tables(database, redis.url)
            migrate(database)
            with psycopg.connect(database.dsn, autocommit=True) as connection:
                history.install(connection)
        yield Template(folder / "postgres", database.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Servers:
    """All servers of a trial. The standby acknowledges each commit until the primary is told otherwise."""

    def __init__(self, network: Network, template: Template, folder: Path) -> None:
        self._network = network
        self._database = template.database
        self.primary = PostgresOnHost(folder / PRIMARY, template.folder)
        self.standby = PostgresOnHost(folder / STANDBY, template.folder)
        self.standby.follow(network.address(PRIMARY), self.primary.port)
        self._broker = RedisOnHost(folder / "broker")
        self._slots = RedisOnHost(folder / "slots")
        self._stack = ExitStack()

    @property
    def dsn(self) -> str:
        """Return the DSN that leads to the primary, whichever of the two that is."""
        hosts = [(PRIMARY, self.primary), (STANDBY, self.standby)]
        addresses = ",".join(f"{self._network.address(name)}:{server.port}" for name, server in hosts)
        return f"postgresql://postgres:{self.primary.password}@{addresses}/{self._database}?{_CLIENT}"

    @property
    def broker(self) -> str:
        """Return the URL of the broker."""
        return f"redis://{self._network.address(REDIS)}:{self._broker.port}/0"

    @property
    def slots(self) -> str:
        """Return the URL of the Redis that counts slots."""
        return f"redis://{self._network.address(REDIS)}:{self._slots.port}/0"

    def promote(self) -> None:
        """Make the standby a primary. Raises `RuntimeError` if it does not become one."""
        with self._admin(STANDBY, self.standby) as admin:
            row = admin.execute(f"SELECT pg_promote(true, {_PROMOTION_SECONDS})".encode()).fetchone()
        if row != (True,):
            raise RuntimeError("the standby was not promoted")

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for host, server in (
                *((REDIS, self._broker), (REDIS, self._slots)),
                *((PRIMARY, self.primary), (STANDBY, self.standby)),
            ):
                with self._network.on(host):
                    stack.enter_context(server)
            with self._admin(PRIMARY, self.primary) as admin:
                admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
                admin.execute("SELECT pg_reload_conf()")
                # Answered once the standby follows.
                admin.execute("CREATE TABLE follows ()")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _admin(self, host: str, server: PostgresOnHost) -> psycopg.Connection[tuple[object, ...]]:
        parts = urlsplit(server.url)
        address = f"{self._network.address(host)}:{server.port}"
        return psycopg.connect(f"postgresql://{parts.username}:{parts.password}@{address}/postgres", autocommit=True)
