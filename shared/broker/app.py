"""The Celery app of all three processes, and our keys in Redis."""

from __future__ import annotations

import json
import ssl
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import batched
from typing import Any

import redis
from celery import Celery
from celery.exceptions import CPendingDeprecationWarning
from celery.signals import setup_logging
from kombu.entity import Queue
from kombu.exceptions import KombuError
from kombu.exceptions import OperationalError as KombuOperationalError

from orcheo_dispatch.shared.broker import celery_environment
from orcheo_dispatch.shared.broker.celery_app import App
from orcheo_dispatch.shared.broker.faults import is_read_only
from orcheo_dispatch.shared.broker.installation import OLD_DISPATCH_QUEUE, Installation
from orcheo_dispatch.shared.errors import BrokerError
from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.logs import setup as logs
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.settings import environment
from orcheo_dispatch.shared.settings.addresses import for_client, for_kombu
from orcheo_dispatch.shared.settings.model import Settings, variables
from orcheo_dispatch.shared.text.redaction import error_line
from orcheo_dispatch.shared.text.storable import is_storable

EXECUTE_RUN = "orcheo_dispatch.execute_run"
TICK = "orcheo_dispatch.tick"
CRON = "orcheo_dispatch.cron"
"""Message that asks a dispatcher to have the API dispatch due cron triggers."""
CRON_IN_WORKER = "orcheo_dispatch.dispatch_cron"
"""Message that asks a worker to dispatch due cron triggers."""
HINT_QUEUE = "celery"
"""Queue to which the API and Orcheo's own Beat publish: Celery's default queue."""

BEAT_HEADER = "orcheo_dispatch_beat"
INSTALLATION_HEADER = "orcheo_dispatch_installation"
RETURNS_HEADER = "orcheo_dispatch_returns"
"""Number of times that workers have returned a message to its queue because they did not know its runs."""

CONNECT_TIMEOUT_SECONDS = 5.0
SOCKET_TIMEOUT_SECONDS = 5.0
"""Timeout of a socket (seconds). Redis answers in milliseconds, so a connection that is silent this long is dead."""
HEALTH_CHECK_SECONDS = 25
_OVER_TCP: dict[str, Any] = {"socket_connect_timeout": CONNECT_TIMEOUT_SECONDS, "socket_keepalive": True}
_POOL_ACQUIRE_SECONDS = 10.0
_PROBE = "orcheo-dispatch: can this be written?"


def make_app(name: str, settings: Settings, installation: Installation | None) -> App:
    """Return a Celery app that sends JSON over Redis, stores no results and never stops reconnecting to its broker.

    The settings prevent known ways in which Celery on Redis stops silently: a socket without a timeout waits forever
    for a peer that has vanished; reconnecting ends after 100 attempts; a Redis result backend blocks Beat. Messages
    are acknowledged as soon as a worker accepts them: the lease in the ledger decides whether a run is lost, not Redis.
    """
    url = settings.redis_url.get_secret_value()
    queue = installation.dispatch if installation else OLD_DISPATCH_QUEUE
    app = App(name, for_kombu(url))
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_create_missing_queues=True,
        task_acks_late=False,
        task_send_sent_event=False,
        task_queues=[Queue(queue)],
        task_default_queue=queue,
        timezone="UTC",
        enable_utc=True,
        # If the URL has no option, kombu would accept any certificate; redis-py, used everywhere else, verifies it.
        broker_use_ssl={"ssl_cert_reqs": ssl.CERT_REQUIRED} if url.startswith("rediss:") else False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=CONNECT_TIMEOUT_SECONDS,
        broker_pool_limit=4,
        broker_pool_acquire_timeout=_POOL_ACQUIRE_SECONDS,
        broker_transport_options={
            # Otherwise kombu copies each message into a hash when it is delivered, and removes it from there when it is
            # acknowledged, at once: two more round trips for nothing.
            "ack_emulation": False,
            "socket_timeout": SOCKET_TIMEOUT_SECONDS,
            "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "socket_keepalive": True,
            "health_check_interval": HEALTH_CHECK_SECONDS,
            # Publishing to an unavailable broker fails at once; the caller decides whether to retry.
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0.2,
            "interval_max": 0.5,
        },
        broker_channel_error_retry=True,
        worker_prefetch_multiplier=1,
        worker_enable_prefetch_count_reduction=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_proc_alive_timeout=120.0,
        beat_max_loop_interval=max(0.05, min(settings.poll_interval, 5.0)),
    )

    # This warning concerns messages that are acknowledged late; ours are acknowledged early.
    warnings.filterwarnings("ignore", r"\s*In Celery 5.1 we introduced", CPendingDeprecationWarning)

    def configure_logs(**_: Any) -> None:
        logs.configure(settings)

    setup_logging.connect(configure_logs, weak=False, dispatch_uid="orcheo-dispatch")
    if ignored := celery_environment.ignored():
        log.warning("celery_environment_ignored", variables=", ".join(ignored))
    for note in environment.notes(variables()):
        log.warning("setting_read_differently", variable=note.variable, text=note.text)
    return app


def connect(url: str) -> redis.Redis:
    """Return a Redis client each of whose calls ends within its timeouts; the URL may be one for kombu."""
    url = for_client(url)
    # redis-py accepts neither option for a Unix socket.
    over_tcp = {} if url.startswith("unix:") else _OVER_TCP
    client: redis.Redis = redis.Redis.from_url(
        url, socket_timeout=SOCKET_TIMEOUT_SECONDS, health_check_interval=HEALTH_CHECK_SECONDS, **over_tcp
    )
    return client


def probe_writing(client: redis.Redis, queue: str) -> None:
    """Raise `BrokerError` if a message could not be published to this queue; the test message is never delivered.

    A server that is full, or a user without the right, still answers a PING.
    """
    with broker_errors(client), client.pipeline(transaction=True) as pipeline:
        pipeline.lpush(queue, _PROBE)
        pipeline.lrem(queue, 1, _PROBE)
        pipeline.execute()


@contextmanager
def broker_errors(*clients: redis.Redis) -> Iterator[None]:
    """Translate errors of redis-py and kombu into `BrokerError`: one line, no password.

    If a server has become read-only, the connections of `clients` are closed: their address may lead to a new primary.
    """
    try:
        yield
    except (redis.RedisError, KombuOperationalError, KombuError, OSError) as error:
        if is_read_only(error):
            for client in clients:
                client.connection_pool.disconnect()
        raise BrokerError(error_line(error)) from error


def send_claims(
    app: Celery,
    installation: Installation,
    claims: Sequence[Claim],
    producer: Any = None,
    *,
    queue: str | None = None,
    returns: int = 0,
) -> None:
    """Publish one message that contains these claims: `run_id, fence, run_id, fence, ...` and nothing else.

    Raises errors of redis-py and kombu. The message may have reached Redis even if this raises.
    """
    pairs = [part for claim in claims for part in (claim.run_id, claim.fence)]
    app.send_task(
        EXECUTE_RUN,
        args=pairs,
        queue=queue or installation.runs,
        producer=producer,
        retry=False,
        ignore_result=True,
        # The body is base64: this header lets reconcile read which claims a message contains.
        headers={"claims": pairs, INSTALLATION_HEADER: installation.name, RETURNS_HEADER: returns},
        # Otherwise Celery would add text forms of the arguments, for logging.
        argsrepr="",
        kwargsrepr="",
    )


def ask_for_cron(app: Celery, client: redis.Redis, queue: str) -> None:
    """Ask a worker to dispatch due cron triggers, unless such a message already waits. Raises `BrokerError`."""
    with broker_errors():
        if not client.llen(queue):
            app.send_task(CRON_IN_WORKER, queue=queue, retry=False, ignore_result=True)


def read_pairs(pairs: Any) -> list[Claim] | None:
    """Return the claims in `run_id, fence, run_id, fence, ...`, or None if `pairs` is anything else.

    Run IDs that Postgres cannot store are none of ours: looking them up would fail.
    """
    if not isinstance(pairs, list | tuple) or not pairs or len(pairs) % 2:
        return None
    claims = [Claim(run_id, fence) for run_id, fence in batched(pairs, 2)]
    sound = all(
        type(claim.run_id) is str and type(claim.fence) is int and is_storable(claim.run_id) for claim in claims
    )
    return claims if sound else None


def task_name(raw: bytes | str) -> str | None:
    """Return the name of the task in a raw kombu message, or None if it is not one."""
    try:
        name = json.loads(raw)["headers"]["task"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) else None


def claims_of(raw: bytes | str) -> list[Claim]:
    """Return the claims in the headers of a raw message; an empty list if it is not one of ours."""
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError):
        return []
    return claims_in(message)


def claims_in(message: Any) -> list[Claim]:
    """Return the claims in the headers of a decoded message; an empty list if it is not one of ours."""
    headers = message.get("headers") if isinstance(message, dict) else None
    if not isinstance(headers, dict) or headers.get("task") != EXECUTE_RUN:
        return []
    return read_pairs(headers.get("claims", headers.get("claim"))) or []
