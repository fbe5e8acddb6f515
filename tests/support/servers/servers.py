"""The Postgres and the Redis that a test session runs on: given by URL, in containers, or embedded."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres, EmbeddedRedis

_START_SECONDS = 60.0
_PAUSE_SECONDS = 0.05
_ENGINE_SECONDS = 5
_PASSWORD = "only-for-tests"
_MEMORY = Path("/dev/shm")
_MEMORY_BYTES = 8 * 2**30
# Both images pass arguments that begin with a dash on to the server.
_POSTGRES_ARGUMENTS = [
    *("-c", "max_connections=200"),
    *("-c", "fsync=off"),
    *("-c", "full_page_writes=off"),
]
_REDIS_ARGUMENTS = ["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]


class Lane(StrEnum):
    """Where the servers come from; `TEST_SERVERS` forces one."""

    URL = "url"
    CONTAINER = "container"
    EMBEDDED = "embedded"


@dataclass(frozen=True, slots=True)
class Choice:
    """A lane, why it was taken, and its servers in words."""

    lane: Lane
    reason: str
    servers: str

    def __str__(self) -> str:
        return f"servers: {self.lane} {self.servers} ({self.reason})"


@dataclass(frozen=True, slots=True)
class Servers:
    """Running servers. `postgres_url` is of a user who may create databases; `redis_url` is of logical database 0."""

    postgres_url: str
    redis_url: str


def choose(environment: Mapping[str, str]) -> Choice:
    """Return the lane for this session. Starts no server; raises `pytest.UsageError` for what cannot be."""
    forced = environment.get("TEST_SERVERS")
    if forced and forced not in list(Lane):
        raise pytest.UsageError(f"TEST_SERVERS={forced!r} is invalid: expected {', '.join(Lane)}")
    urls = [environment.get(name) for name in ("TEST_DATABASE_URL", "TEST_REDIS_URL")]
    if forced == Lane.URL or (not forced and any(urls)):
        if not all(urls):
            raise pytest.UsageError("servers by URL take both TEST_DATABASE_URL and TEST_REDIS_URL")
        return Choice(Lane.URL, "TEST_DATABASE_URL and TEST_REDIS_URL are set", versions_of(_given(environment)))
    missing = "TEST_SERVERS=embedded" if forced == Lane.EMBEDDED else _missing_for_containers(environment)
    if not missing:
        reason = "a Docker engine answers and has both images"
        return Choice(Lane.CONTAINER, reason, " and ".join(_images(environment)))
    if forced == Lane.CONTAINER:
        raise pytest.UsageError(f"TEST_SERVERS=container, but {missing}")
    versions = f"PostgreSQL {EmbeddedPostgres.version()}, Redis {EmbeddedRedis.version()}"
    return Choice(Lane.EMBEDDED, missing, versions)


@contextmanager
def running(lane: Lane, environment: Mapping[str, str]) -> Iterator[Servers]:
    """Start the lane's servers, yield them, and stop them for certain."""
    match lane:
        case Lane.URL:
            yield _given(environment)
        case Lane.CONTAINER:
            with _containers(*_images(environment)) as servers:
                yield servers
        case Lane.EMBEDDED:
            with (
                scratch() as folder,
                EmbeddedPostgres(folder / "postgres", durable=False) as postgres,
                EmbeddedRedis(folder / "redis") as broker,
            ):
                yield Servers(postgres.url, broker.url)


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a folder for a server's files and remove it. It is in memory where there is enough of that.

    Each test clones a database, some 400 files. After many files were deleted, ext4 looks long for a free inode: that
    was a third of the CPU time of the tests of commands, policies and the schema.

    Not below pytest's own: that one is closed to other users, again at each session, and under root the
    server is another user.
    """
    folder = Path(tempfile.mkdtemp(prefix="orcheo-dispatch-test-", dir=_in_memory()))
    # Others may pass through it, not list it.
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _in_memory() -> Path | None:
    """Return where files are kept in memory, unless TMPDIR names a folder or less than 8 GB are free."""
    if "TMPDIR" in os.environ or not os.access(_MEMORY, os.W_OK):
        return None
    free = min(shutil.disk_usage(_MEMORY).free, psutil.virtual_memory().available)
    return _MEMORY if free >= _MEMORY_BYTES else None


def versions_of(servers: Servers) -> str:
    """Return the versions that running servers report."""
    with psycopg.connect(servers.postgres_url, connect_timeout=5) as connection:
        postgres = connection.info.parameter_status("server_version") or "?"
    with redis.Redis.from_url(servers.redis_url, socket_connect_timeout=5) as client:
        broker = client.info("server")["redis_version"]
    return f"PostgreSQL {postgres.split()[0]}, Redis {broker}"


def _given(environment: Mapping[str, str]) -> Servers:
    # The tests set the number of the logical database themselves.
    redis_url = re.sub(r"/\d*$", "", environment["TEST_REDIS_URL"])
    return Servers(environment["TEST_DATABASE_URL"], f"{redis_url}/0")


def _images(environment: Mapping[str, str]) -> tuple[str, str]:
    return environment.get("TEST_POSTGRES_IMAGE", "postgres:17"), environment.get("TEST_REDIS_IMAGE", "redis:7")


def _missing_for_containers(environment: Mapping[str, str]) -> str:
    """Return what keeps us from containers, or nothing. Images are looked for locally, never pulled."""
    # Docker's client leaves its socket open where no engine answers: collected here, it fails no test later.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        missing = _ask_engine(environment)
        gc.collect()
    return missing


def _ask_engine(environment: Mapping[str, str]) -> str:
    try:
        docker: Any = importlib.import_module("docker")
        importlib.import_module("testcontainers.core.container")
    except ImportError as error:
        return f"the Python package {error.name} is missing"
    try:
        client = docker.from_env(timeout=_ENGINE_SECONDS)
    except docker.errors.DockerException:
        return "no Docker engine answers"
    with contextlib.closing(client):
        try:
            client.ping()
            local = {tag for image in client.images.list() for tag in image.tags}
        except (docker.errors.DockerException, OSError):
            return "no Docker engine answers"
    absent = [image for image in _images(environment) if image not in local]
    return f"the Docker engine lacks the image {' and '.join(absent)}: docker pull it" if absent else ""


@contextmanager
def _containers(postgres_image: str, redis_image: str) -> Iterator[Servers]:
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.container import DockerContainer

    # Its reaper is an image that would be pulled; the containers below are removed on every path but SIGKILL.
    testcontainers_config.ryuk_disabled = True
    postgres = DockerContainer(postgres_image).with_exposed_ports(5432).with_command(_POSTGRES_ARGUMENTS)
    postgres.with_env("POSTGRES_PASSWORD", _PASSWORD)
    broker = DockerContainer(redis_image).with_exposed_ports(6379).with_command(_REDIS_ARGUMENTS)
    with postgres, broker:
        host, port = postgres.get_container_host_ip(), postgres.get_exposed_port(5432)
        postgres_url = f"postgresql://postgres:{_PASSWORD}@{host}:{port}/postgres"
        redis_url = f"redis://{broker.get_container_host_ip()}:{broker.get_exposed_port(6379)}/0"
        servers = Servers(postgres_url, redis_url)
        _wait_until_ready(servers)
        yield servers


def _wait_until_ready(servers: Servers) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            versions_of(servers)
        except (psycopg.OperationalError, redis.RedisError):
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_SECONDS)
        else:
            return
