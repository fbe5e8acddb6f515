"""TLS and passwords: our processes on servers that ask for both, with the very lines of `docs/security.md`."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import pytest
import redis

from orcheo_dispatch.ops.host import check as checks
from orcheo_dispatch.ops.host.findings import Grade
from orcheo_dispatch.ops.sandbox.binaries import redis_binary
from orcheo_dispatch.ops.sandbox.child import launch
from orcheo_dispatch.ops.sandbox.embedded import EmbeddedRedis
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.settings.model import Settings
from tests.support.database.databases import Database, grant, make_orcheo_tables, migrate
from tests.support.database.roles import Kind, Roles
from tests.support.database.runs import WORKSPACE_ID, everything, insert_runs
from tests.support.processes.processes import Stack, until
from tests.support.servers.servers import Servers, scratch
from tests.support.servers.tls import Certificates, TlsPostgres, TlsProxy, TlsRedis, system_postgres, system_redis

_SECURITY = Path(__file__).parents[3] / "docs" / "security.md"
_PASSWORD = "hunter2 @/:%&"
_REDIS_USER = "orcheo_dispatch"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server takes TLS connections, with a certificate for `localhost`."""

    port: int
    certificates: Certificates
    database: Database | None = None
    """Of Postgres: as the test itself reaches it."""
    admin_url: str = ""
    """Of Redis: without TLS, as a user who may do all."""


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """What the authority that everybody trusts has signed."""
    return Certificates.issue(tmp_path / "certificates")


@pytest.fixture
def stranger(tmp_path: Path) -> Certificates:
    """What another authority has signed, for the same names."""
    return Certificates.issue(tmp_path / "stranger")


@pytest.fixture
def postgres(request: pytest.FixtureRequest, servers: Servers, certificates: Certificates) -> Iterator[Address]:
    """Postgres behind TLS, with runs waiting and roles of least privilege."""
    with ExitStack() as opened:
        if getattr(request, "param", "proxy") == "proxy":
            database: Database = request.getfixturevalue("database")
            request.getfixturevalue("roles")
            _takes_plain_connections(database)
            parts = urlsplit(servers.postgres_url)
            context = certificates.context(asks_client=False)
            proxy = TlsProxy(parts.hostname or "localhost", parts.port or 5432, context, postgres=True)
            yield Address(opened.enter_context(proxy).port, certificates, database)
            return
        server = _system_postgres(opened, certificates)
        dsn = f"{server.url.replace('127.0.0.1', 'localhost')}?sslmode=verify-full&sslrootcert={certificates.authority}"
        bare, roles = Database("postgres", dsn), Roles()
        make_orcheo_tables(bare, servers.redis_url)
        migrate(bare)
        with psycopg.connect(dsn, autocommit=True) as admin:
            roles.make(admin)
        grant(bare, roles)
        yield Address(server.port, certificates, replace(bare, roles=roles))


@pytest.fixture
def broker(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[Address]:
    """Redis behind TLS that asks for a client's certificate, and knows our user with the documented rights alone."""
    with ExitStack() as opened:
        folder = opened.enter_context(scratch())
        server: EmbeddedRedis
        if getattr(request, "param", "proxy") == "proxy":
            server = opened.enter_context(EmbeddedRedis(folder))
            proxy = TlsProxy("127.0.0.1", server.port, certificates.context(asks_client=True))
            port = opened.enter_context(proxy).port
        else:
            binary = system_redis()
            if binary is None:
                pytest.skip(
                    "no redis-server on this host that speaks TLS itself: on Debian, apt-get install redis-server"
                )
            server = opened.enter_context(TlsRedis(folder, binary, certificates))
            port = server.tls_port
        with redis.Redis.from_url(server.url) as client:
            client.set("orcheo:workspace:runs:" + WORKSPACE_ID, 7)
            client.set("somebody:elses", "secret")
            client.execute_command("ACL", "SETUSER", _REDIS_USER, *_documented_rules())
            client.execute_command("ACL", "SETUSER", "admin", "on", ">admin", "~*", "+@all")
            client.execute_command("ACL", "SETUSER", "default", "off")
        yield Address(port, certificates, admin_url=server.url.replace("//", "//admin:admin@"))


@pytest.fixture
def stack(postgres: Address, broker: Address, tmp_path: Path) -> Stack:
    """Our processes, with the documented URLs and the rights of their roles."""
    assert postgres.database is not None
    database = replace(postgres.database, dsn=_dsn(postgres))
    return Stack(database, _redis_url(broker), tmp_path / "side-effects")


@pytest.mark.parametrize(
    ("postgres", "broker"), [("proxy", "proxy"), ("server", "proxy"), ("proxy", "server")], indirect=True
)
def test_runs_are_executed_over_tls_with_passwords(stack: Stack) -> None:
    database = stack.database
    insert_runs(database, 5)
    with (
        stack.running("worker") as worker,
        stack.running("dispatcher") as dispatcher,
        stack.running("beat") as beat,
    ):
        until(lambda: _all(database, "SELECT status FROM workflow_runs", "succeeded"), what="every run succeeded")
        until(lambda: _all(database, "SELECT slot FROM orcheo_dispatch.dispatch", "returned"), what="slots are back")
    findings = json.loads(_ran(stack, "check", "--json"))
    assert {finding["what"]: finding["grade"] for finding in findings}["broker"] == "ok"
    assert "wrong" not in {finding["grade"] for finding in findings}
    assert "published 1" in (insert_runs(database) and _ran(stack, "poll"))
    for process in (worker, dispatcher, beat):
        _holds_no_password(process.log, stack)


def test_redis_with_a_certificate_of_somebody_else_is_refused(
    stack: Stack, broker: Address, stranger: Certificates
) -> None:
    url = _redis_url(replace(broker, certificates=replace(broker.certificates, authority=stranger.authority)))
    insert_runs(stack.database)
    assert "CERTIFICATE_VERIFY_FAILED" in _last_line(_ran(stack, "poll", expect=4, REDIS_URL=url))
    assert "CERTIFICATE_VERIFY_FAILED" in _found(stack, "broker", redis_url=url)


def test_redis_with_a_certificate_for_another_name_is_refused(stack: Stack, broker: Address) -> None:
    url = _redis_url(broker).replace("localhost", "127.0.0.1")
    assert "certificate is not valid for '127.0.0.1'" in _found(stack, "broker", redis_url=url)


def test_redis_refuses_a_wrong_password(stack: Stack, broker: Address) -> None:
    url = _redis_url(broker, password="hunter2, but wrong")
    insert_runs(stack.database)
    assert "invalid username-password pair" in _last_line(_ran(stack, "poll", expect=4, REDIS_URL=url))
    assert "invalid username-password pair" in _ran(stack, "check", "--json", expect=4, REDIS_URL=url)


def test_redis_refuses_a_client_without_certificate(stack: Stack, broker: Address) -> None:
    url = re.sub("&ssl_(certfile|keyfile)=[^&]*", "", _redis_url(broker))
    assert _found(stack, "broker", redis_url=url)


def test_redis_is_verified_though_the_url_says_nothing_of_certificates(stack: Stack, broker: Address) -> None:
    """kombu would take any certificate then; the system's authorities decide, for the broker as for the rest."""
    bare = _redis_url(broker).partition("?")[0]
    certificate = f"{bare}?ssl_certfile={broker.certificates.client}"
    insert_runs(stack.database)
    assert "CERTIFICATE_VERIFY_FAILED" in _ran(stack, "poll", expect=4, REDIS_URL=bare)
    authority = str(broker.certificates.authority)
    assert "claimed 1, published 1" in _ran(stack, "poll", REDIS_URL=certificate, SSL_CERT_FILE=authority)


def test_processes_that_redis_refuses_say_why_and_go_on_when_it_lets_them_in(stack: Stack, broker: Address) -> None:
    new_password = "hunter2, but later"
    url = _redis_url(broker, password=new_password)
    insert_runs(stack.database)
    with ExitStack() as running:
        processes = [
            running.enter_context(stack.running(kind, REDIS_URL=url, ORCHEO_REDIS_URL=url))
            for kind in ("worker", "dispatcher", "beat")
        ]
        for process in processes:
            process.saw("invalid username-password pair")
        with redis.Redis.from_url(broker.admin_url) as admin:
            admin.execute_command("ACL", "SETUSER", _REDIS_USER, f">{new_password}")
        until(lambda: _all(stack.database, "SELECT status FROM workflow_runs", "succeeded"), what="the run succeeded")
    for process in processes:
        _holds_no_password(process.log, stack)


def test_postgres_with_a_certificate_of_somebody_else_is_refused(
    stack: Stack, postgres: Address, stranger: Certificates
) -> None:
    dsn = _dsn(replace(postgres, certificates=stranger), Kind.DISPATCHER)
    for command in ("status", "worker"):
        assert _only_line(_ran(stack, command, expect=3, ORCHEO_POSTGRES_DSN=dsn)).endswith("certificate verify failed")
    assert "certificate verify failed" in _found(stack, "database", postgres_dsn=dsn)


def test_postgres_with_a_certificate_for_another_name_is_refused(stack: Stack, postgres: Address) -> None:
    dsn = _dsn(postgres, Kind.DISPATCHER).replace("localhost", "127.0.0.1")
    assert 'does not match host name "127.0.0.1"' in _found(stack, "database", postgres_dsn=dsn)


def test_postgres_refuses_a_wrong_password(stack: Stack, postgres: Address) -> None:
    dsn = _dsn(postgres, Kind.DISPATCHER, password="hunter2, but wrong")
    for command in ("status", "dispatcher"):
        line = _only_line(_ran(stack, command, expect=3, ORCHEO_POSTGRES_DSN=dsn))
        assert "password authentication failed for user" in line
    assert "password authentication failed" in _found(stack, "database", postgres_dsn=dsn)


def test_password_of_postgres_may_be_in_a_file(stack: Stack, postgres: Address, tmp_path: Path) -> None:
    parts = urlsplit(_dsn(postgres, Kind.DISPATCHER))
    file = tmp_path / "pgpass"
    file.touch(mode=0o600)
    file.write_text(f"localhost:{parts.port}:{parts.path[1:]}:{parts.username}:{parts.password}\n")
    dsn = parts._replace(netloc=f"{parts.username}@localhost:{parts.port}").geturl()
    _ran(stack, "status", ORCHEO_POSTGRES_DSN=dsn, PGPASSFILE=str(file))


def test_redis_user_may_do_no_more_than_our_processes_do(broker: Address) -> None:
    with redis.Redis.from_url(_redis_url(broker)) as client:
        assert client.llen("orcheo.runs") == 0
        for command in ("FLUSHALL", "FLUSHDB", "KEYS *", "CONFIG GET *", "ACL LIST", "SHUTDOWN", "EVAL x 0"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command.split())
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.get("somebody:elses")
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.publish("celery", "x")


def test_runs_are_executed_over_a_socket(database: Database, tmp_path: Path) -> None:
    with scratch() as folder, _RedisOnSocket(folder) as server:
        stack = Stack(database, f"unix://{server.socket}", tmp_path / "side-effects")
        insert_runs(database, 2)
        with stack.running("worker"), stack.running("dispatcher"), stack.running("beat"):
            until(lambda: _all(database, "SELECT status FROM workflow_runs", "succeeded"), what="every run succeeded")


class _RedisOnSocket(EmbeddedRedis):
    """Redis that also listens on a socket in its folder."""

    @property
    def socket(self) -> Path:
        return self.directory / "redis.sock"

    def _launch(self) -> subprocess.Popen[bytes]:
        options = [
            "--port",
            str(self.port),
            "--unixsocket",
            str(self.socket),
            "--save",
            "",
            "--dir",
            str(self.directory),
        ]
        return launch([str(redis_binary()), *options], log=self.log, death_signal=self.death_signal)


def _takes_plain_connections(database: Database) -> None:
    try:
        psycopg.connect(database.dsn, sslmode="disable").close()
    except psycopg.OperationalError:
        pytest.skip("the server of TEST_DATABASE_URL takes TLS connections only: no proxy can end TLS before it")


def _system_postgres(opened: ExitStack, certificates: Certificates) -> TlsPostgres:
    binaries = system_postgres()
    if binaries is None:
        pytest.skip("no PostgreSQL on this host that speaks TLS itself: on Debian, apt-get install postgresql")
    try:
        return opened.enter_context(TlsPostgres(opened.enter_context(scratch()), binaries, certificates))
    except DatabaseError as error:
        if "SSL is not supported" not in str(error):
            raise
        pytest.skip(f"{binaries} was built without TLS: on Debian, apt-get install postgresql")


def _documented(line: str) -> str:
    """Return what the document has after `line`."""
    found = re.search(rf"^{re.escape(line)}(.*)$", _SECURITY.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None, f"docs/security.md has no line {line}..."
    return found[1].strip("'")


def _documented_rules() -> list[str]:
    return [f">{_PASSWORD}" if rule == ">PASSWORD" else rule for rule in _documented(f"user {_REDIS_USER} ").split()]


def _redis_url(broker: Address, password: str = _PASSWORD) -> str:
    return _with(
        _documented("REDIS_URL="),
        ("redis.internal:6380", f"localhost:{broker.port}"),
        ("PASSWORD", quote(password, safe="")),
        ("/etc/orcheo/ca.pem", broker.certificates.authority),
        ("/etc/orcheo/client.pem", broker.certificates.client),
        ("/etc/orcheo/client.key", broker.certificates.client),
    )


def _dsn(postgres: Address, kind: Kind | None = None, password: str | None = None) -> str:
    """Return the DSN of a role's member, or of the owner."""
    assert postgres.database is not None
    parts = urlsplit(postgres.database.dsn_of(kind) if kind else postgres.database.dsn)
    who = f"{parts.username}:{quote(password, safe='')}" if password else parts.netloc.rpartition("@")[0]
    return _with(
        _documented("ORCHEO_POSTGRES_DSN="),
        ("dispatcher_1:PASSWORD", who),
        ("db.internal:5432/orcheo", f"localhost:{postgres.port}{parts.path}"),
        ("/etc/orcheo/ca.pem", postgres.certificates.authority),
    )


def _with(text: str, *replacements: tuple[str, Any]) -> str:
    for old, new in replacements:
        assert old in text, f"{old} is not in {text}"
        text = text.replace(old, str(new))
    return text


def _all(database: Database, query: str, value: str) -> bool:
    return {each for row in everything(database, query) for each in row.values()} == {value}


def _ran(stack: Stack, *arguments: str, expect: int = 0, **variables: str) -> str:
    with stack.command(*arguments, **variables) as process:
        code = process.exit_code()
        process.finish()
    assert code == expect, process.log
    assert "Traceback" not in process.log
    _holds_no_password(process.log, stack)
    return process.log


def _only_line(log: str) -> str:
    (line,) = log.splitlines()
    return line


def _last_line(log: str) -> str:
    assert log.splitlines()[-1].startswith("orcheo-dispatch: ")
    return log.splitlines()[-1]


def _found(stack: Stack, what: str, **addresses: str) -> str:
    """Return what `check` finds wrong about `what`, after making sure that it says so in its exit code."""
    addresses = {
        "postgres_dsn": stack.database.dsn_of(Kind.DISPATCHER),
        "redis_url": stack.environment["REDIS_URL"],
        **addresses,
    }
    findings = checks.check(Settings.load(slots_redis_url=addresses["redis_url"], **addresses))
    assert checks.exit_code(findings) == {"database": 3, "broker": 4}[what]
    (found,) = (finding.found for finding in findings if finding.what == what and finding.grade == Grade.WRONG)
    _holds_no_password(found, stack)
    return found


def _holds_no_password(log: str, stack: Stack) -> None:
    assert "hunter2" not in log
    password = urlsplit(stack.database.dsn_of(Kind.DISPATCHER)).password
    assert password
    assert password not in log
