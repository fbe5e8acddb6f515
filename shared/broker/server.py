"""Detect the kind of Redis: a single server, or a cluster or sentinel, which our processes cannot use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from orcheo_dispatch.shared.broker.app import broker_errors, connect
from orcheo_dispatch.shared.errors import BrokerError
from orcheo_dispatch.shared.settings.model import Settings

_UNUSABLE = {
    "cluster": "a Redis Cluster, where our keys are on different servers: specify a Redis without cluster mode",
    "sentinel": "a Redis Sentinel, which stores no messages: specify the primary, or an address that follows it",
}


@dataclass(frozen=True, slots=True)
class Server:
    """What a server reports about itself; None if it did not answer."""

    version: str | None = None
    mode: str | None = None
    role: str | None = None

    @property
    def unusable(self) -> str | None:
        """Why our processes cannot use this server, or None if they can."""
        return _UNUSABLE.get(self.mode or "")


def look_at(client: redis.Redis) -> Server:
    """Ask the server for its kind. Raises errors of redis-py, except if the server refuses the commands.

    Every user may run HELLO; many lack the right to run INFO.
    """
    for ask in (_hello, _info):
        try:
            return ask(client)
        except redis.ResponseError:
            continue
    return Server()


def refuse_unusable(settings: Settings) -> None:
    """Raise `BrokerError` if one of the addresses leads to a server that our processes cannot use.

    An unavailable server is skipped, because processes wait for it.
    """
    urls = {
        "REDIS_URL": settings.redis_url.get_secret_value(),
        "ORCHEO_REDIS_URL": settings.slots_redis_url.get_secret_value(),
    }
    for variable, url in urls.items():
        client = connect(url)
        client.set_retry(Retry(NoBackoff(), 0))
        try:
            with broker_errors():
                unusable = look_at(client).unusable
        except BrokerError:
            continue
        finally:
            client.close()
        if unusable:
            raise BrokerError(f"{variable} leads to {unusable}")


def _hello(client: redis.Redis) -> Server:
    untyped: Any = client
    answer: Any = untyped.execute_command("HELLO")
    pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=False)
    said = {_text(name): _text(value) for name, value in pairs}
    return Server(said.get("version"), said.get("mode"), said.get("role"))


def _info(client: redis.Redis) -> Server:
    said: Any = client.info("server")
    return Server(str(said["redis_version"]), str(said.get("redis_mode", "standalone")))


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
