"""Every address that we take leads Celery, which publishes, and redis-py, which looks, to the same place."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from pydantic import SecretStr

from orcheo_dispatch.ops.sandbox.binaries import redis_binary
from orcheo_dispatch.ops.sandbox.child import launch
from orcheo_dispatch.ops.sandbox.embedded import EmbeddedRedis
from orcheo_dispatch.shared.broker.app import connect, make_app
from orcheo_dispatch.shared.settings.addresses import check_redis_url
from orcheo_dispatch.shared.settings.model import Settings
from tests.support.servers.servers import scratch

_NAMES = ["plain", "p@ss/word", "a:b", "percent%25", "ünïcödé", "q?ry#frag&=+", "[::1]"]


class SocketRedis(EmbeddedRedis):
    """Redis that also listens on a socket in its folder."""

    @property
    def socket(self) -> Path:
        return self.directory / "redis.sock"

    def _launch(self) -> subprocess.Popen[bytes]:
        options = ["--port", str(self.port), "--unixsocket", str(self.socket), "--save", "", "--dir"]
        return launch(
            [str(redis_binary()), *options, str(self.directory)], log=self.log, death_signal=self.death_signal
        )


@pytest.fixture(scope="module")
def server() -> Iterator[SocketRedis]:
    with scratch() as folder, SocketRedis(folder) as started:
        with redis.Redis.from_url(started.url) as admin:
            for name in _NAMES:
                admin.acl_setuser(name, enabled=True, passwords=[f"+{name}"], keys=["*"], commands=["+@all"])
            admin.execute_command("CONFIG", "SET", "requirepass", "only for the default user")
        yield started


def _published_in(server: SocketRedis, url: str) -> set[int]:
    """Publish by Celery and look by redis-py, both at `url`; return the databases that hold the message."""
    settings = Settings.load(postgres_dsn="postgresql://nobody@127.0.0.1:1/x", redis_url=url)
    with make_app("test", settings, None) as app:
        app.send_task("task", queue="orcheo.test", retry=False)
    with connect(url) as client:
        assert client.llen("orcheo.test") == 1
    holding = set()
    for number in range(16):
        with redis.Redis(port=server.port, db=number, password="only for the default user") as admin:
            if admin.delete("orcheo.test"):
                holding.add(number)
    return holding


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize(
    ("form", "database"),
    [
        ("redis://{}@127.0.0.1:{port}", 0),
        ("redis://{}@127.0.0.1:{port}/", 0),
        ("redis://{}@localhost:{port}/11", 11),
        ("unix://{}@{socket}", 0),
        ("unix://{}@{socket}?db=3", 3),
        ("redis+socket://{}@{socket}?virtual_host=4", 4),
    ],
)
def test_user_password_and_database_are_understood(server: SocketRedis, form: str, database: int, name: str) -> None:
    who = f"{quote(name, safe='')}:{quote(name, safe='')}"
    url = form.format(who, port=server.port, socket=server.socket)
    assert _published_in(server, url) == {database}


def test_password_without_a_user_is_that_of_the_default_user(server: SocketRedis) -> None:
    url = f"redis://:{quote('only for the default user', safe='')}@127.0.0.1:{server.port}/2"
    assert _published_in(server, url) == {2}


@pytest.mark.parametrize(
    "url",
    [
        "sentinel://a:26379;sentinel://b:26379/0",
        "sentinel://:hunter2@a:26379",
        "redis+sentinel://a:26379/mymaster",
        "rediss+cluster://a:6379",
        "redis://a:6379;redis://b:6379",
    ],
)
def test_addresses_of_several_servers_are_refused_by_name(url: str) -> None:
    with pytest.raises(ValueError, match="Sentinel and Cluster are not supported") as refused:
        check_redis_url(SecretStr(url))
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["unix://", "unix://host/path", "unix:///path?db=x", "redis+socket:///p?db=1", "amqp://a"]
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="a URL"):
        check_redis_url(SecretStr(url))
