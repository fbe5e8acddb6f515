"""Logs: an event and its fields, redacted, whoever logs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from shared import logs
from shared.logs import log
from shared.redaction import redact
from shared.settings import Settings

SECRET = "hunter2"


@pytest.fixture
def configured(request: pytest.FixtureRequest) -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.configure(Settings.load(postgres_dsn="postgresql://x/y", log_format=request.param))
    yield
    log.remove()
    root.handlers[:], root.level = handlers, level


def _raise() -> None:
    raise ValueError(f"input was {SECRET}")


@pytest.mark.parametrize("configured", ["text"], indirect=True)
@pytest.mark.usefixtures("configured")
def test_text_line_is_an_event_and_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log.info("run_begun", run_id="r1", fence=3, reason="two words", nothing=None)
    line = capsys.readouterr().err
    assert line.endswith('INFO    run_begun run_id=r1 fence=3 reason="two words"\n')


@pytest.mark.parametrize("configured", ["json"], indirect=True)
@pytest.mark.usefixtures("configured")
def test_json_line_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    log.warning("run_reaped", run_id="r1", fence=3)
    logging.getLogger("celery.worker").warning("lost {connection}\nagain")
    first, second = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (first["level"], first["event"], first["run_id"], first["fence"]) == ("WARNING", "run_reaped", "r1", 3)
    assert (second["event"], second["logger"]) == ("lost {connection}\nagain", "celery.worker")


@pytest.mark.parametrize("configured", ["text", "json"], indirect=True)
@pytest.mark.usefixtures("configured")
def test_secrets_and_texts_of_exceptions_are_in_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.info("connecting", url=f"redis://me:{SECRET}@host/0")
    logging.getLogger("celery").error("Cannot connect to %s", f"postgresql://me:{SECRET}@host/db")
    try:
        _raise()
    except ValueError as error:
        logging.getLogger("orcheo").exception("it failed")
        log.error("failed", **logs.describe(error))
    written = capsys.readouterr().err
    assert SECRET not in written
    assert written.count("ValueError") == 2
    assert "test_logs.py" in written


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("redis://:hunter2@host:6379/0", "redis://:***@host:6379/0"),
        ("postgresql://me:hunt@er2@host/db and more", "postgresql://me:***@host/db and more"),
        ("host=x password=hunter2 dbname=y", "host=x password=*** dbname=y"),
        ("password='hunter 2' x", "password=*** x"),
        ("Authorization: Bearer hunter2", "Authorization: ***"),
        ("https://x/?access_token=hunter2&page=1", "https://x/?access_token=***&page=1"),
        ("sslkey=a.pem sslpassword=hunter2", "sslkey=a.pem sslpassword=***"),
        ("nothing to hide: 12:30 at https://example.org/a@b", "nothing to hide: 12:30 at https://example.org/a@b"),
    ],
)
def test_redact_hides_credentials_and_nothing_else(text: str, redacted: str) -> None:
    assert redact(text) == redacted
