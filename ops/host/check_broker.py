"""Check whether Redis is one that our processes can use; what is wrong differs from what could not be asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import redis

from orcheo_dispatch.ops.host.findings import Finding, Grade
from orcheo_dispatch.shared.broker.app import HINT_QUEUE, broker_errors, connect, probe_writing
from orcheo_dispatch.shared.broker.faults import problem
from orcheo_dispatch.shared.broker.installation import Installation, find_installation
from orcheo_dispatch.shared.broker.server import Server, look_at
from orcheo_dispatch.shared.errors import BrokerError, DatabaseError
from orcheo_dispatch.shared.settings.model import Settings

REDIS_OLDEST = (6, 2)
_WRONG = BrokerError.exit_code
_UNNAMED = Installation("check")
"""Where the database does not say which installation this is, a queue of this name is tried."""


def look_at_broker(settings: Settings) -> Iterator[Finding]:
    """Check the broker, and the Redis of the run slots if it is another one."""
    url, slots_url = settings.redis_url.get_secret_value(), settings.slots_redis_url.get_secret_value()
    yield from _look(url, "broker", "REDIS_URL", settings)
    if slots_url != url:
        yield from _look(slots_url, "server of the run slots", "ORCHEO_REDIS_URL", None)


def _look(url: str, what: str, variable: str, settings: Settings | None) -> Iterator[Finding]:
    client = connect(url)
    try:
        with broker_errors():
            server = look_at(client)
        yield _server(server, what, variable)
        if server.unusable:
            return
        if settings is not None:
            yield from _policy(client)
            yield from _use(client, settings)
    except BrokerError as error:
        yield Finding(what, Grade.WRONG, str(error), f"see {variable}", _WRONG)
    finally:
        client.close()


def _server(server: Server, what: str, variable: str) -> Finding:
    if server.unusable:
        return Finding(what, Grade.WRONG, f"{variable} leads to {server.unusable}", f"see {variable}", _WRONG)
    if server.version is None:
        return Finding(what, Grade.WARN, "version: could not ask, HELLO and INFO are refused", "6.2 or later is needed")
    if _numbers(server.version) < REDIS_OLDEST:
        return Finding(what, Grade.WRONG, f"Redis {server.version}", "Redis 6.2 or later is needed", _WRONG)
    if server.role in ("replica", "slave"):
        return Finding(what, Grade.WRONG, f"Redis {server.version}, a read-only replica", "name the primary", _WRONG)
    return Finding(what, Grade.OK, f"Redis {server.version}")


def _policy(client: redis.Redis) -> Iterator[Finding]:
    policy = _maxmemory_policy(client)
    if policy is None:
        found = "could not ask, INFO and CONFIG are refused to this user"
        yield Finding("maxmemory-policy", Grade.WARN, found, "grant +info, or make sure that it is noeviction")
    elif policy == "noeviction":
        yield Finding("maxmemory-policy", Grade.OK, policy)
    else:
        mend = "CONFIG SET maxmemory-policy noeviction: Redis may drop messages"
        yield Finding("maxmemory-policy", Grade.WARN, policy, mend)


def _maxmemory_policy(client: redis.Redis) -> str | None:
    with broker_errors():
        try:
            memory: Any = client.info("memory")
            if policy := memory.get("maxmemory_policy"):
                return str(policy)
        except redis.ResponseError:
            pass
        try:
            configured: Any = client.config_get("maxmemory-policy")
        except redis.ResponseError:
            return None
    return str(configured["maxmemory-policy"]) if configured else None


def _use(client: redis.Redis, settings: Settings) -> Iterator[Finding]:
    """Do, without a trace, what our processes do: read the queue of pushes, publish, call a script."""
    try:
        installation = find_installation(settings)
        yield Finding("installation", Grade.OK, f"{installation.name}, queue {installation.runs}")
    except DatabaseError:
        # What is wrong with the database is another finding.
        installation = _UNNAMED
    try:
        with broker_errors():
            waiting: Any = client.llen(HINT_QUEUE)
            old: Any = client.llen(installation.old_runs)
            client.register_script("return redis.call('LLEN', KEYS[1])")(keys=[installation.dispatch])
        for queue in (installation.dispatch, installation.runs):
            probe_writing(client, queue)
    except BrokerError as error:
        mend = "docs/security.md lists the rights that our processes need; see REDIS_URL"
        yield Finding("use of Redis", Grade.WRONG, problem(error), mend, _WRONG)
        return
    yield Finding("use of Redis", Grade.OK, "messages can be published")
    if waiting > settings.max_queued:
        yield Finding("queue celery", Grade.WARN, f"{waiting} messages", "is a dispatcher running?")
    if old:
        mend = "of another installation, or of a dispatcher of an earlier release while no worker runs"
        yield Finding(f"queue {installation.old_runs}", Grade.WARN, f"{old} messages", mend)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
