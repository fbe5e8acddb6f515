"""A cluster or a sentinel is refused; a user with few rights is enough, and what it may not ask is said."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from orcheo_dispatch.ops.sandbox.binaries import redis_binary
from orcheo_dispatch.ops.sandbox.child import launch
from orcheo_dispatch.ops.sandbox.embedded import EmbeddedRedis
from tests.support.database.databases import Database
from tests.support.database.runs import all_are, insert_runs
from tests.support.processes.processes import Stack, until
from tests.support.servers.servers import scratch


class ClusterRedis(EmbeddedRedis):
    """One node of a Redis Cluster."""

    def _launch(self) -> subprocess.Popen[bytes]:
        options = ["--port", str(self.port), "--cluster-enabled", "yes", "--save", "", "--dir", str(self.directory)]
        return launch([str(redis_binary()), *options], log=self.log, death_signal=self.death_signal)


class Sentinel(EmbeddedRedis):
    """A Redis Sentinel that watches nothing."""

    def _launch(self) -> subprocess.Popen[bytes]:
        configuration = self.directory / "sentinel.conf"
        configuration.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {self.directory}\n")
        arguments = [str(redis_binary()), str(configuration), "--sentinel"]
        return launch(arguments, log=self.log, death_signal=self.death_signal)


@pytest.fixture(params=[ClusterRedis, Sentinel])
def unusable(request: pytest.FixtureRequest) -> Iterator[EmbeddedRedis]:
    with scratch() as folder, request.param(folder) as server:
        yield server


def _only_line(stack: Stack, *arguments: str, **variables: str) -> str:
    with stack.command(*arguments, **variables) as process:
        assert process.exit_code() == 4
        process.finish()
    (line,) = process.log.splitlines()
    return line


@pytest.mark.parametrize(
    ("command", "variable"),
    [("beat", "REDIS_URL"), ("dispatcher", "REDIS_URL"), ("worker", "ORCHEO_REDIS_URL"), ("poll", "REDIS_URL")],
)
def test_cluster_and_sentinel_are_refused_at_the_start(
    database: Database, redis_url: str, unusable: EmbeddedRedis, tmp_path: Path, command: str, variable: str
) -> None:
    stack = Stack(database, redis_url, tmp_path / "side-effects")
    line = _only_line(stack, command, **{variable: unusable.url})
    assert line.startswith(f"orcheo-dispatch: {variable} leads to a Redis ")


def test_cluster_and_sentinel_are_found_by_check(database: Database, unusable: EmbeddedRedis, tmp_path: Path) -> None:
    stack = Stack(database, unusable.url, tmp_path / "side-effects")
    with stack.command("check", "--json") as process:
        assert process.exit_code() == 4
        process.finish()
    wrong = [each for each in json.loads(process.log) if each["grade"] == "wrong"]
    assert [each["what"] for each in wrong] == ["broker"]
    assert wrong[0]["found"].startswith("REDIS_URL leads to a Redis ")


@pytest.mark.parametrize(
    ("rules", "unasked"),
    [
        ("+@all -@dangerous", {"maxmemory-policy"}),
        ("+@all -@dangerous -@admin", {"maxmemory-policy"}),
        ("+@all -info", set()),
        ("+@all", set()),
    ],
)
def test_user_without_dangerous_commands_is_enough(
    database: Database, redis_server: EmbeddedRedis, tmp_path: Path, rules: str, unasked: set[str]
) -> None:
    with redis.Redis.from_url(redis_server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "me", "on", ">secret", "~*", "&*", *rules.split())
    url = redis_server.url.replace("//", "//me:secret@")
    stack = Stack(database, url, tmp_path / "side-effects")
    insert_runs(database, 3)
    with stack.running("worker"), stack.running("dispatcher"), stack.running("beat"):
        until(lambda: all_are(database, "succeeded"), what="every run succeeded")
    with stack.command("check", "--json") as process:
        assert process.exit_code() == 0
        process.finish()
    found = {each["what"]: each for each in json.loads(process.log)}
    assert {what for what, each in found.items() if "could not ask" in each["found"]} == unasked
    assert {found[what]["grade"] for what in unasked} <= {"warn"}
