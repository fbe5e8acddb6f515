"""PgBouncer, as severe as it can be: in transaction mode each transaction goes to another server connection."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import psycopg

from orcheo_dispatch.ops.sandbox import other_user
from orcheo_dispatch.ops.sandbox.child import launch
from orcheo_dispatch.ops.sandbox.embedded_server import EmbeddedServer
from orcheo_dispatch.shared.errors import DatabaseError
from tests.support.database.databases import Database

MISSING = "pgbouncer is missing: apt-get install pgbouncer"
_CONNECT_SECONDS = 2
_STOP_SECONDS = 5.0
_SETTINGS = """\
[databases]
* = host={host} port={port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = {mode}
server_round_robin = 1
default_pool_size = {size}
max_client_conn = 500
"""


def find() -> str | None:
    """Return where the program is; on Debian it is not on every user's path."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


class PgBouncer(EmbeddedServer):
    """PgBouncer between clients and the server of `dsns`, for the users that these name."""

    name = "PgBouncer"
    error = DatabaseError
    death_signal = signal.SIGKILL

    def __init__(self, directory: Path, dsns: Iterable[str], *, size: int = 8, mode: str = "transaction") -> None:
        super().__init__(directory)
        self._dsns = list(dsns)
        self._size = size
        self._mode = mode

    @property
    def url(self) -> str:
        """Return the first of the DSNs, through the pooler."""
        return self.through(self._dsns[0])

    @classmethod
    def version(cls) -> str:
        """Return the version of the program."""
        done = subprocess.run([find() or "pgbouncer", "--version"], capture_output=True, check=True, text=True)
        return done.stdout.split()[1]

    def through(self, dsn: str) -> str:
        """Return `dsn` with the pooler in place of the server."""
        parts = urlsplit(dsn)
        user = parts.netloc.rpartition("@")[0]
        return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{self.port}"))

    def fill(self, connections: int) -> None:
        """Have so many server connections for each user: without a second one there is no other to go to."""
        for dsn in self._dsns:
            with ExitStack() as clients:
                for _ in range(connections):
                    client = clients.enter_context(psycopg.connect(self.through(dsn), prepare_threshold=None))
                    # It stays in its transaction, and so on its server connection.
                    client.execute("SELECT 1")

    def before(self, database: Database) -> Database:
        """Return the same database, as clients of the pooler see it."""
        return replace(database, dsn=self.through(database.dsn))

    def pools(self) -> list[dict[str, Any]]:
        """Return what `SHOW POOLS` says, of our databases."""
        dsn = urlunsplit(urlsplit(self.url)._replace(path="/pgbouncer", query=""))
        with psycopg.connect(dsn, autocommit=True, row_factory=psycopg.rows.dict_row, prepare_threshold=None) as admin:
            # The console speaks the simple protocol alone.
            with psycopg.ClientCursor(admin, row_factory=psycopg.rows.dict_row) as cursor:
                rows = cursor.execute("SHOW POOLS").fetchall()
        return [row for row in rows if row["database"] != "pgbouncer"]

    def _launch(self) -> subprocess.Popen[bytes]:
        parts = [urlsplit(dsn) for dsn in self._dsns]
        users = self.directory / "users.txt"
        names = {unquote(part.username or ""): unquote(part.password or "") for part in parts}
        users.write_text("".join(f'"{name}" "{password}"\n' for name, password in names.items()))
        settings = self.directory / "pgbouncer.ini"
        text = _SETTINGS.format(
            host=parts[0].hostname,
            port=parts[0].port,
            own_port=self.port,
            users=users,
            size=self._size,
            mode=self._mode,
        )
        owner = unquote(parts[0].username or "")
        settings.write_text(f"{text}admin_users = {owner}\n")
        user = None
        if os.geteuid() == 0:
            # It refuses to run as root.
            user = other_user.NAME
            other_user.let_in(self.directory)
            other_user.give((users, settings))
        program = find()
        assert program is not None, MISSING
        return launch([program, str(settings)], log=self.log, death_signal=self.death_signal, user=user)

    def _ready(self, process: subprocess.Popen[bytes]) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=_CONNECT_SECONDS).close()
        except psycopg.OperationalError:
            return False
        return process.poll() is None

    def _stop_signals(self) -> tuple[tuple[signal.Signals, float], ...]:
        return ((signal.SIGTERM, _STOP_SECONDS),)
