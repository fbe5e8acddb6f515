"""Logs: an event and its fields, redacted, whoever logs."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orcheo_dispatch.shared.logs import library as library_logs
from orcheo_dispatch.shared.logs import setup as logs
from orcheo_dispatch.shared.logs.lines import describe, log, within_run
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.text.redaction import keep_secret, redact

ROOT = Path(__file__).parents[2]
SECRET = "hunter2"


@pytest.fixture
def configured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for owner, hook in (("sys.excepthook", sys.excepthook), ("sys.unraisablehook", sys.unraisablehook)):
        monkeypatch.setattr(owner, hook)
    monkeypatch.setattr("threading.excepthook", __import__("threading").excepthook)
    monkeypatch.setattr(library_logs, "_level", None)
    logs.configure(Settings.load(postgres_dsn="postgresql://x/y", log_format=request.param))
    yield
    logging.captureWarnings(False)
    log.remove()
    log.configure(patcher=lambda _: None)
    keep_secret()
    root.handlers[:], root.level = handlers, level


def _raise() -> None:
    raise ValueError(f"input was {SECRET}")


@pytest.mark.parametrize("configured", ["text"], indirect=True)
@pytest.mark.usefixtures("configured")
def test_text_line_is_an_event_and_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log.info("run_begun", run_id="r1", fence=3, reason="two words", nothing=None)
    line = capsys.readouterr().err
    assert line.endswith('INFO    run_begun run_id=r1 fence=3 reason="two words"\n')


@pytest.mark.parametrize("configured", ["text"], indirect=True)
@pytest.mark.usefixtures("configured")
def test_text_line_stays_one_line_that_no_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    log.info("odd\n\x1b[31m", reason="a\r\n\x1b[2Jb\u2028c\x85d")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(r'odd\n\u001b[31m reason="a\r\n\u001b[2Jb\u2028c\u0085d"')


@pytest.mark.parametrize("configured", ["json"], indirect=True)
@pytest.mark.usefixtures("configured")
def test_json_line_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    log.warning("run_reaped", outcome="lost", fence=3, run_id="r1", level="mine")
    logging.getLogger("celery.worker").warning("lost {connection}\nagain")
    first, second = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (first["level"], first["event"], first["run_id"], first["fence"]) == ("WARNING", "run_reaped", "r1", 3)
    assert list(first) == ["time", "level", "event", "run_id", "fence", "outcome"]
    assert (second["event"], second["logger"], second["text"]) == (
        "logged",
        "celery.worker",
        "lost {connection}\nagain",
    )


@pytest.mark.parametrize("configured", ["json"], indirect=True)
@pytest.mark.usefixtures("configured")
def test_every_line_within_a_run_names_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with within_run(run_id="r1", workflow_id="w1", fence=3):
        log.warning("browser_not_closed", fence=4)
        logging.getLogger("celery").warning("something")
    log.warning("after")
    ours, celerys, after = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (ours["run_id"], ours["workflow_id"], ours["fence"]) == ("r1", "w1", 4)
    assert (celerys["run_id"], celerys["workflow_id"], celerys["fence"]) == ("r1", "w1", 3)
    assert "run_id" not in after


@pytest.mark.parametrize("configured", ["text", "json"], indirect=True)
@pytest.mark.usefixtures("configured")
def test_secrets_and_texts_of_exceptions_are_in_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.info("connecting", url=f"redis://me:{SECRET}@host/0")
    logging.getLogger("celery").error("Cannot connect to %s", f"postgresql://me:{SECRET}@host/db")
    try:
        _raise()
    except ValueError as error:
        logging.getLogger("orcheo").exception("it failed")
        log.error("failed", **describe(error))
    written = capsys.readouterr().err
    assert SECRET not in written
    assert written.count("ValueError") == 2
    assert "test_logs.py" in written


@pytest.mark.parametrize("configured", ["text"], indirect=True)
@pytest.mark.usefixtures("configured")
def test_libraries_are_quoted_as_far_as_they_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("kombu.transport").warning("lost %s", "the broker")
    logging.getLogger("orcheo.nodes.debug").info("DebugNode %s: %s", "start", SECRET)
    logging.getLogger("a.workflow").warning("got %s", SECRET)
    logging.getLogger("a.workflow").info("got %s", SECRET)
    logging.getLogger("sqlalchemy.engine.Engine").info("Row %s", SECRET)
    logging.getLogger("celery.app.trace").error("Task raised %s", SECRET)
    kombu, orcheo, workflow, task = capsys.readouterr().err.splitlines()
    assert kombu.endswith('WARNING logged logger=kombu.transport text="lost the broker"')
    assert orcheo.endswith('INFO    logged logger=orcheo.nodes.debug text="DebugNode %s: %s"')
    assert "logged logger=a.workflow at=" in workflow
    assert "ERROR   logged logger=celery.app.trace at=" in task, "a task that fails is told of, and not quoted"
    assert SECRET not in workflow + task


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


def test_secrets_of_the_settings_are_hidden_wherever_they_stand() -> None:
    keep_secret("sword/fish-1", "short")
    try:
        assert redact("AUTH default sword/fish-1, short") == "AUTH default ***, short"
        assert redact("sword%2Ffish-1") == "***"
        assert redact("swordfish sword/fish-12") == "swordfish sword/fish-12"
    finally:
        keep_secret()


_START = """
import asyncio, sys, threading, time, warnings
from orcheo_dispatch.shared.logs import lines
from orcheo_dispatch.shared.logs import setup as logs
from orcheo_dispatch.shared.logs.library import drop_prints
from orcheo_dispatch.shared.settings.model import Settings
logs.configure(Settings.load(postgres_dsn="postgresql://me:swordfish-dsn@x/y", log_format={form!r}))
SECRET = "swordfish"
"""


def _run(script: str, *, form: str = "text", environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run a process of our logging with real pipes, and return its exit code, its stdout and its stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", _START.format(form=form) + script],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


_UNCAUGHT = """
def fail(*_):
    raise ValueError(f"input was {SECRET}")

class Ending:
    __del__ = fail

async def forget():
    task = asyncio.create_task(asyncio.to_thread(fail))
    await asyncio.wait([task])

thread = threading.Thread(target=fail, name="of-a-run")
thread.start()
thread.join()
threading.Thread(target=sys.exit).start()
asyncio.run(forget())
warnings.warn(f"odd {SECRET}", UserWarning)
Ending()
fail()
"""


def test_what_nobody_catches_is_one_line_without_its_text() -> None:
    code, out, err = _run(_UNCAUGHT, form="json")
    lines = [json.loads(line) for line in err.splitlines()]
    assert (code, out) == (1, "")
    assert [line["event"] for line in lines] == [
        "thread_failed",
        "logged",
        "python_warned",
        "exception_ignored",
        "process_failed",
    ]
    assert lines[0]["thread"] == "of-a-run"
    assert (lines[1]["logger"], lines[1]["text"]) == ("asyncio", "Task exception was never retrieved")
    assert lines[2]["category"] == "UserWarning"
    assert {line["error"] for line in lines if "error" in line} == {"ValueError"}
    assert all("at" in line for line in lines)
    assert "swordfish" not in err


_PRINTS = """
drop_prints()
print("the main thread may speak")

def of_a_run(number):
    with lines.within_run(run_id=f"r{number}"):
        print(SECRET, number)
        sys.stdout.writelines([SECRET])
        print(SECRET, file=sys.stderr)

for number in (1, 2):
    thread = threading.Thread(target=of_a_run, args=[number])
    thread.start()
    thread.join()
stray = threading.Thread(target=print, args=[SECRET])
stray.start()
stray.join()
"""


def test_prints_of_runs_are_dropped_and_told_of_once_a_run() -> None:
    code, out, err = _run(_PRINTS)
    assert (code, out) == (0, "the main thread may speak\n")
    assert "swordfish" not in err
    told = [line.split(" print_dropped ")[1] for line in err.splitlines()]
    assert told == [
        *("run_id=r1 stream=stdout", "run_id=r1 stream=stderr"),
        *("run_id=r2 stream=stdout", "run_id=r2 stream=stderr"),
        "stream=stdout",
    ]


def _journaled(form: str, *, theirs: bool) -> str:
    """Return what a process writes into a pipe that `JOURNAL_STREAM` names, or into another."""
    reading, writing = os.pipe()
    found = os.fstat(writing)
    script = 'logs.log.info("run_begun", run_id="r1")\nlogs.log.error("poll_failed")\n'
    with os.fdopen(reading) as reader:
        subprocess.run(
            [sys.executable, "-c", _START.format(form=form) + script],
            cwd=ROOT,
            env={**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + (0 if theirs else 1)}"},
            stderr=writing,
            check=True,
            timeout=60,
        )
        os.close(writing)
        return reader.read()


_FORK = """
import os, threading, time
from orcheo_dispatch.shared.logs.lines import log
threading.Thread(target=time.sleep, args=[60], daemon=True).start()
for _ in range(3):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    log.info("forked")
"""


def test_fork_beside_other_threads_of_which_python_warns_stops_no_log_line() -> None:
    code, _, errors = _run(_FORK + "time.sleep(0.2)\n")
    assert (code, errors.count(" forked")) == (0, 3), errors


def test_journal_gets_priorities_and_no_second_timestamp() -> None:
    assert _journaled("text", theirs=True) == "<6>INFO    run_begun run_id=r1\n<3>ERROR   poll_failed\n"
    first, second = _journaled("json", theirs=True).splitlines()
    assert (first[:3], second[:3]) == ("<6>", "<3>")
    assert list(json.loads(first[3:])) == ["time", "level", "event", "run_id"]


def test_stream_that_is_not_the_journals_gets_timestamps_and_no_priorities() -> None:
    first, _ = _journaled("text", theirs=False).splitlines()
    assert first[:2] == "20"
    assert first.endswith("INFO    run_begun run_id=r1")


def test_reader_that_is_gone_ends_nothing() -> None:
    script = """
import os
reading, writing = os.pipe()
os.dup2(writing, 2)
os.close(reading)
logs.log.info("nobody_reads")
print("still here")
sys.stderr = None
logs.log.info("nobody_reads")
"""
    assert _run(script)[:2] == (0, "still here\n")
