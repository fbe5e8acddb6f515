"""Alerts: real dispatchers send them to a real HTTP server, once each, and claims never wait for that."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any

import pytest

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres
from tests.support.database.databases import Database, make_orcheo_tables, migrate
from tests.support.database.runs import everything, execute, insert_runs
from tests.support.processes.logbook import LOGBOOK
from tests.support.processes.processes import Stack, until
from tests.support.servers.inbox import Webhook, webhook
from tests.support.servers.mailbox import PASSWORD, mailbox

SECRET = "s3cretTokenOfTheWebhook"
# The length of a request for TLS or GSSAPI, which comes before the message that begins a session.
_ASKS_FOR_ENCRYPTION = 8
NO_WORKER, NO_DISPATCHER, NO_DATABASE = "OrcheoNoWorker", "OrcheoNoDispatcher", "OrcheoDatabaseUnavailable"


@pytest.fixture
def target() -> Iterator[Webhook]:
    with webhook() as found:
        yield found


def _row(database: Database, name: str) -> dict[str, object]:
    rows = everything(database, "SELECT * FROM orcheo_dispatch.alert WHERE name = %s", name)
    return rows[0] if rows else {}


def _age(database: Database, name: str) -> None:
    """Wait until the condition was found true; then it has been true for an hour."""
    until(lambda: _row(database, name), what=f"{name} in the table")
    execute(database, "UPDATE orcheo_dispatch.alert SET since = now() - interval '1 hour' WHERE name = %s", name)


def _variables(target: Webhook, **more: str) -> dict[str, str]:
    return {"ORCHEO_ALERTS_URLS": target.url(SECRET), "ORCHEO_ALERTS_HOLD": "2", **more}


def test_outage_is_one_message_of_two_dispatchers_and_one_recovery(
    stack: Stack, database: Database, target: Webhook
) -> None:
    LOGBOOK.plant(SECRET, "token of the webhook")
    variables = _variables(target, ORCHEO_ALERTS_LINK="https://docs.example.org/orcheo/")
    with stack.running("dispatcher", **variables) as first, stack.running("dispatcher", **variables) as second:
        _age(database, NO_WORKER)
        until(lambda: target.titles(NO_WORKER), what="the message")
        until(lambda: _row(database, NO_WORKER)["told_at"], what="that it was delivered")
        leader, other = (first, second) if "alert_sent" in first.log else (second, first)
        # The one that tells is replaced, and started again: nothing is sent a second time.
        leader.signal(Signals.SIGTERM)
        assert leader.exit_code() == 0
        other.saw("alerts_leading")
        with stack.running("dispatcher", **variables), stack.running("worker"):
            until(lambda: target.titles("[resolved] " + NO_WORKER), what="the recovery message")
        assert [title.split(":")[0] for title in target.titles(NO_WORKER)] == [
            f"[critical] {NO_WORKER}",
            f"[resolved] {NO_WORKER}",
        ]
        assert SECRET not in first.log + second.log
    alert, recovery = (each for each in target.messages if NO_WORKER in each["title"])
    assert alert["type"] == "failure"
    assert "For 1 h." in alert["message"]
    assert "https://docs.example.org/orcheo/runbook.html#orcheonoworker" in alert["message"]
    assert "resolved after 1 h" in recovery["title"]


def test_flapping_condition_is_one_message(stack: Stack, database: Database, target: Webhook) -> None:
    with stack.running("dispatcher", **_variables(target, ORCHEO_ALERTS_HOLD="600")):
        _age(database, NO_WORKER)
        until(lambda: target.titles(NO_WORKER), what="the message")
        for _ in range(3):
            with stack.running("worker") as worker:
                before = _row(database, NO_WORKER)["seen_at"]
                # It deregisters at its end: the condition is true again.
                worker.signal(Signals.SIGTERM)
                assert worker.exit_code() == 0
            until(partial(_seen_since, database, before), what="that it was found true again")
        assert len(target.titles(NO_WORKER)) == 1


def _seen_since(database: Database, before: Any) -> bool:
    return bool(_row(database, NO_WORKER)["seen_at"] != before)


def test_target_that_does_not_answer_delays_no_claim_and_is_tried_again(
    stack: Stack, database: Database, target: Webhook
) -> None:
    target.release.clear()
    with webhook() as healthy:
        both = f"{target.url(SECRET)}, {healthy.url('other-path')}"
        with stack.running("dispatcher", **_variables(target, ORCHEO_ALERTS_URLS=both)) as dispatcher:
            _age(database, NO_WORKER)
            until(lambda: target.requests, what="a message that is not answered")
            (run_id,) = insert_runs(database)
            claimed = "SELECT FROM orcheo_dispatch.dispatch WHERE run_id = %s AND state IN ('claimed', 'published')"
            until(lambda: everything(database, claimed, run_id), what="a claim", seconds=3)
            # The other target has got it meanwhile.
            until(lambda: healthy.titles(NO_WORKER), what="the message of the other target")
            dispatcher.saw("alert_not_sent")
            target.release.set()
            until(lambda: target.titles(NO_WORKER), what="the second attempt")
            dispatcher.signal(Signals.SIGTERM)
            assert dispatcher.exit_code() == 0


def test_worker_tells_that_no_dispatcher_is_alive_and_a_dispatcher_that_it_is_over(
    stack: Stack, database: Database, target: Webhook
) -> None:
    variables = _variables(target)
    execute(database, "UPDATE orcheo_dispatch.teller SET until = now() - interval '1 hour'")
    with stack.running("worker", **variables):
        _age(database, NO_DISPATCHER)
        until(lambda: target.titles(NO_DISPATCHER), what="the message")
        with stack.running("dispatcher", **variables):
            until(lambda: target.titles("[resolved] " + NO_DISPATCHER), what="the recovery message")
    assert len(target.titles(NO_DISPATCHER)) == 2


@contextmanager
def _refusing(port: int) -> Iterator[list[bytes]]:
    """Close each connection to this port, and yield the list of the messages with which they began."""
    begun: list[bytes] = []

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.settimeout(5)
                message = connection.recv(4096)
                # It asks for encryption first.
                while len(message) == _ASKS_FOR_ENCRYPTION:
                    connection.sendall(b"N")
                    message = connection.recv(4096)
                begun.append(message)

    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=accept, args=[listener])
        thread.start()
        try:
            yield begun
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def _count(messages: list[bytes], part: bytes) -> int:
    return sum(part in each for each in list(messages))


def test_outage_of_postgres_is_told_once_by_a_running_dispatcher_and_its_end_too(
    postgres_server: EmbeddedPostgres, redis_url: str, tmp_path: Path, target: Webhook
) -> None:
    private = Database("postgres", postgres_server.url)
    make_orcheo_tables(private, redis_url)
    migrate(private)
    stack = Stack(private, redis_url, tmp_path / "effects")
    with stack.running("dispatcher", **_variables(target)) as dispatcher:
        dispatcher.saw("alerts_leading")
        postgres_server.kill()
        with _refusing(postgres_server.port) as begun:
            dispatcher.saw("alerts_postponed")
            # The rule holds for a minute.
            until(lambda: target.titles(NO_DATABASE), what="the message", seconds=120)
            # Each look at the conditions asks Postgres, on a connection of its own, after it has seen to the outage.
            looks = partial(_count, begun, b"dispatcher alerts")
            seen = looks()
            until(lambda: looks() >= seen + 6, what="further looks during the outage")
        assert target.titles() == [f"[critical] {NO_DATABASE}: This dispatcher does not reach Postgres"]
        postgres_server.start()
        dispatcher.saw("alerts_resumed")
        until(lambda: target.titles("[resolved] " + NO_DATABASE), what="the recovery message")
        dispatcher.signal(Signals.SIGTERM)
        assert dispatcher.exit_code() == 0
    assert [title.split(":")[0] for title in target.titles(NO_DATABASE)] == [
        f"[critical] {NO_DATABASE}",
        f"[resolved] {NO_DATABASE}",
    ]


def test_mail_is_delivered_to_a_mail_server(stack: Stack, database: Database) -> None:
    LOGBOOK.plant(PASSWORD, "password of the mailbox")
    with mailbox() as box:
        with stack.running("dispatcher", ORCHEO_ALERTS_URLS=box.url(), ORCHEO_ALERTS_HOLD="2") as dispatcher:
            _age(database, NO_WORKER)
            until(lambda: box.subjects(NO_WORKER), what="the mail")
            dispatcher.saw("alert_sent")
            with stack.running("worker"):
                until(lambda: box.subjects("[resolved] " + NO_WORKER), what="the mail of the recovery")
        # Whoever has another password is refused, and so is said.
        with stack.command("alerts", "test", ORCHEO_ALERTS_URLS=f"{box.url()} {box.url('another')}") as process:
            assert process.exit_code() == 1
            process.finish()
    assert process.log.splitlines() == ["1 (mailto): delivered", "2 (mailto): not accepted"]
    assert box.refusals == 1
    alert, recovery, trial = box.mails
    assert alert.subject == f"[critical] {NO_WORKER}: No worker is alive"
    assert "For 1 h." in alert.text
    assert "What to do: docs/runbook.md#orcheonoworker" in alert.text
    assert recovery.subject.startswith(f"[resolved] {NO_WORKER}: resolved after")
    assert trial.subject == "[test] orcheo-dispatch: alerts arrive here"
    for mail in box.mails:
        assert (mail.sender, mail.recipients) == ("orcheo@example.org", ["oncall@example.org"])
        assert PASSWORD not in mail.message.as_string()


@pytest.mark.parametrize(
    ("urls", "said"),
    [
        ("nonsense-" + SECRET, "ORCHEO_ALERTS_URLS has an invalid value: expected URLs of Apprise"),
        (f"nonsense://{SECRET}", "the URL is not understood"),
        (f"json://localhost/x nonsense://{SECRET}", "URL 2 of 2 is not understood"),
    ],
)
@pytest.mark.parametrize("command", ["dispatcher", "worker", "alerts"])
def test_wrong_url_is_one_line_without_it(stack: Stack, command: str, urls: str, said: str) -> None:
    arguments = ("alerts", "test") if command == "alerts" else (command,)
    with stack.command(*arguments, ORCHEO_ALERTS_URLS=urls) as process:
        assert process.exit_code() == 2
        process.finish()
    (line,) = [line for line in process.log.splitlines() if "ORCHEO_ALERTS_URLS" in line]
    assert said in line
    assert SECRET not in process.log


def test_command_lists_what_fires_and_tests_each_target(stack: Stack, database: Database, target: Webhook) -> None:
    execute(database, "INSERT INTO orcheo_dispatch.alert (name, told_at) VALUES (%s, now())", NO_WORKER)
    with stack.command("alerts", "--json") as process:
        assert process.exit_code() == 0
        process.finish()
        assert f'"name": "{NO_WORKER}"' in process.log
        assert "docs/runbook.md#orcheonoworker" in process.log
    with webhook() as refusing:
        refusing.status = 403
        urls = f"{target.url(SECRET)} {refusing.url(SECRET)}"
        with stack.command("alerts", "test", ORCHEO_ALERTS_URLS=urls) as process:
            assert process.exit_code() == 1
            process.finish()
    assert process.log.splitlines() == ["1 (json): delivered", "2 (json): HTTP status 403"]
    assert target.titles() == ["[test] orcheo-dispatch: alerts arrive here"]
