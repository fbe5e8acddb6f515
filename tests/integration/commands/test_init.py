"""`init` asks for the settings, connects with each answer, and writes a file that works; or it writes nothing."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from orcheo_dispatch.ops.setup.env_text import read_variables
from tests.support.database.databases import Database
from tests.support.processes.terminal import CTRL_C, Terminal

_COMMAND = Path(sys.executable).with_name("orcheo-dispatch")
_PASSWORD = "h4r'd @#%:/?\"$x`\\ ü"
_DSN, _REDIS, _SLOTS = "ORCHEO_POSTGRES_DSN", "REDIS_URL", "ORCHEO_REDIS_URL"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "orcheo.env"


def _environment(**variables: str) -> dict[str, str]:
    """Return an environment without any setting of Orcheo's, and a width that breaks no line."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "COLUMNS": "400", **variables}


def _run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(_COMMAND), "init", *arguments],
        env=_environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def _addresses(database: Database, redis_url: str) -> dict[str, str]:
    return {_DSN: database.dsn, _REDIS: redis_url, _SLOTS: redis_url}


def _in_shell(target: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of ours in a clean shell that has read the file."""
    script = f'set -a; . "$1"; set +a; exec "$2" {command}'
    return subprocess.run(
        ["/bin/sh", "-c", script, "sh", str(target), str(_COMMAND)],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_file_is_written_from_the_environment_and_works(
    orcheo_database: Database, redis_url: str, target: Path
) -> None:
    done = _run("--yes", "--file", str(target), **_addresses(orcheo_database, redis_url), ORCHEO_WORKER_CONCURRENCY="7")
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    variables = read_variables(target)
    assert {name: variables[name] for name in (_DSN, _REDIS, _SLOTS)} == _addresses(orcheo_database, redis_url)
    assert variables["ORCHEO_DISPATCH_POLL_INTERVAL"] == "1"
    assert variables["ORCHEO_WORKER_CONCURRENCY"] == "7"
    assert len(variables["ORCHEO_HEALTH_TOKEN"]) >= 32
    password = urlsplit(orcheo_database.dsn).password
    shown = done.stdout + done.stderr
    assert variables["ORCHEO_HEALTH_TOKEN"] not in shown
    assert password is None or password not in shown
    assert _in_shell(target, "migrate").returncode == 0
    status = _in_shell(target, "status --json")
    assert status.returncode == 0, status.stderr


def test_steps_are_printed_in_the_order_in_which_they_work(
    orcheo_database: Database, redis_url: str, target: Path
) -> None:
    shown = _run("--yes", "--file", str(target), **_addresses(orcheo_database, redis_url)).stdout
    steps = [f". {target};", " migrate", " check", "install -D", " units --write", "systemctl enable", " status"]
    places = [shown.index(step) for step in steps]
    assert places == sorted(places)
    assert f"{_COMMAND} migrate" in shown


@pytest.fixture
def role_with_hard_password(admin: psycopg.Connection[Any], orcheo_database: Database) -> Iterator[str]:
    """The URL of Orcheo's database for a role with the password `_PASSWORD`, which is not in the URL."""
    role, password = sql.Identifier(f"init_{uuid4().hex}"), sql.Literal(_PASSWORD)
    try:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, password))
    except psycopg.errors.InsufficientPrivilege:
        pytest.skip("the user of TEST_DATABASE_URL may not create roles")
    try:
        with psycopg.connect(orcheo_database.dsn, autocommit=True) as owner:
            owner.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}").format(role))
            parts = urlsplit(orcheo_database.dsn)
            yield urlunsplit(parts._replace(netloc=f"{role.as_string().strip('"')}@{parts.netloc.rpartition('@')[2]}"))
            owner.execute(sql.SQL("DROP OWNED BY {}").format(role))
    finally:
        admin.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(role))


def test_answers_are_asked_for_checked_and_written(role_with_hard_password: str, redis_url: str, target: Path) -> None:
    with Terminal(str(_COMMAND), "init", "--file", str(target), environment=_environment()) as terminal:
        terminal.answer(_DSN, "no-address\n")
        terminal.answer("ORCHEO_POSTGRES_DSN has an invalid value: expected", "")
        terminal.answer(_DSN, "postgresql://nobody:hunter2@127.0.0.1:1/none\n")
        terminal.answer("Connection refused", "")
        terminal.answer("Keep this answer", "n\n")
        terminal.answer(_DSN, f"{role_with_hard_password}\n")
        terminal.answer("its password", "hunter2-wrong\n")
        terminal.answer("Keep this answer", "n\n")
        terminal.answer(_DSN, f"{role_with_hard_password}\n")
        terminal.answer("its password", f"{_PASSWORD}\n")
        terminal.answer("Orcheo's tables: workflow_runs is there", "")
        terminal.answer(f"{_REDIS} [redis://localhost:6379/0]", "http://nowhere\n")
        terminal.answer("expected a URL that begins with redis://", "")
        terminal.answer(f"{_REDIS} [", f"{redis_url}\n")
        terminal.answer("its password", "\n")
        terminal.answer("ok: broker: Redis", "")
        terminal.answer(f"{_SLOTS} [{redis_url}]", "\n")
        terminal.answer("ORCHEO_DISPATCH_POLL_INTERVAL [1]", "soon\n")
        terminal.answer("ORCHEO_DISPATCH_POLL_INTERVAL='soon' is invalid", "")
        terminal.answer("ORCHEO_DISPATCH_POLL_INTERVAL [1]", "2.5\n")
        terminal.answer("Generate a token", "n\n")
        terminal.answer("Write it?", "\n")
        assert terminal.exit_code() == 0
        shown = terminal.shown
    assert "hunter2-wrong" not in shown
    assert _PASSWORD not in shown
    assert quote(_PASSWORD, safe="") not in shown
    # It was typed into a question that shows what is typed, and is not repeated.
    assert shown.count("hunter2") == 1
    variables = read_variables(target)
    assert urlsplit(variables[_DSN]).password == quote(_PASSWORD, safe="")
    assert variables["ORCHEO_DISPATCH_POLL_INTERVAL"] == "2.5"
    assert "ORCHEO_HEALTH_TOKEN" not in variables
    check = _in_shell(target, "check --json")
    assert '"found": "workflow_runs is there"' in check.stdout, check.stderr


def test_interrupt_writes_nothing(orcheo_database: Database, redis_url: str, target: Path) -> None:
    environment = _environment(**_addresses(orcheo_database, redis_url))
    with Terminal(str(_COMMAND), "init", "--file", str(target), environment=environment) as terminal:
        terminal.answer(_DSN, "\n")
        terminal.answer(f"{_REDIS} [", CTRL_C)
        assert terminal.exit_code() == 130
        assert "nothing was written" in terminal.shown
        assert "Traceback" not in terminal.shown
    assert list(target.parent.iterdir()) == []


def test_end_of_input_writes_nothing(target: Path) -> None:
    with Terminal(str(_COMMAND), "init", "--file", str(target), environment=_environment()) as terminal:
        terminal.answer(_DSN, "\x04")
        assert terminal.exit_code() == 130
    assert not target.exists()


def test_file_that_is_there_is_replaced_only_if_confirmed_and_keeps_its_variables(
    orcheo_database: Database, redis_url: str, target: Path
) -> None:
    target.write_text('ORCHEO_WORKER_CONCURRENCY=5\nMY_OWN="it\'s \\$5"\nORCHEO_DISPATCH_POLL_INTERVAL=3\n')
    before = target.read_text()
    environment = _environment(**_addresses(orcheo_database, redis_url))
    arguments = (str(_COMMAND), "init", "--no-check", "--file", str(target))
    with Terminal(*arguments, environment=environment) as terminal:
        terminal.answer("Replace it?", "\n")
        assert terminal.exit_code() == 1
    assert target.read_text() == before
    with Terminal(*arguments, environment=environment) as terminal:
        terminal.answer("Replace it?", "y\n")
        for question in (_DSN, _REDIS, _SLOTS, "POLL_INTERVAL [3]", "Generate a token", "Write it?"):
            terminal.answer(question, "\n")
        assert terminal.exit_code() == 0
    variables = read_variables(target)
    assert (variables["ORCHEO_WORKER_CONCURRENCY"], variables["MY_OWN"]) == ("5", "it's $5")
    assert variables["ORCHEO_DISPATCH_POLL_INTERVAL"] == "3"


def test_file_that_is_there_is_left_alone_without_a_terminal(
    orcheo_database: Database, redis_url: str, target: Path
) -> None:
    target.write_text("ORCHEO_HEALTH_TOKEN=0123456789abcdef0123\n")
    variables = _addresses(orcheo_database, redis_url)
    refused = _run("--yes", "--file", str(target), **variables)
    assert refused.returncode == 1
    assert refused.stderr == f"orcheo-dispatch: {target} exists, nothing was written: --force replaces it\n"
    assert target.read_text() == "ORCHEO_HEALTH_TOKEN=0123456789abcdef0123\n"
    assert _run("--yes", "--force", "--file", str(target), **variables).returncode == 0
    assert read_variables(target)["ORCHEO_HEALTH_TOKEN"] == "0123456789abcdef0123"


def test_defaults_come_from_the_api_s_file(orcheo_database: Database, redis_url: str, target: Path) -> None:
    api = target.with_name("api.env")
    api.write_text(
        f"{_DSN}={orcheo_database.dsn}\n{_REDIS}={redis_url}\n{_SLOTS}={redis_url}\nORCHEO_AUTH_MODE=disabled\n"
        "ORCHEO_VAULT_ENCRYPTION_KEY='k#y with $ and spaces'\nORCHEO_CHECKPOINT_BACKEND=postgres\n"
        "ORCHEO_HEALTH_PORT=9461\n"
    )
    done = _run("--yes", "--env-file", str(api), "--file", str(target), "--no-token", "--poll-interval", "5")
    assert done.returncode == 0, done.stderr
    assert read_variables(target) == {
        **_addresses(orcheo_database, redis_url),
        "ORCHEO_DISPATCH_POLL_INTERVAL": "5",
        "ORCHEO_VAULT_ENCRYPTION_KEY": "k#y with $ and spaces",
        "ORCHEO_CHECKPOINT_BACKEND": "postgres",
    }
    assert "k#y with" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "said"),
    [
        ((), {}, 2, "init was started without a terminal to ask on: add --yes"),
        (("--yes",), {}, 2, "ORCHEO_POSTGRES_DSN is not set"),
        (("--yes",), {_DSN: "postgresql://me:hunter2@127.0.0.1:1/x"}, 3, "database: connection failed"),
        (("--yes", "--no-check"), {_DSN: "mysql://me:hunter2@h/x"}, 2, "ORCHEO_POSTGRES_DSN has an invalid value"),
        (
            ("--yes", "--no-check"),
            {_DSN: "postgresql:///x", "ORCHEO_WORKER_LEASE": "soon"},
            2,
            "ORCHEO_WORKER_LEASE='soon' is invalid",
        ),
        (
            ("--yes", "--no-check"),
            {_DSN: "postgresql:///x", "ORCHEO_VAULT_ENCRYPTION_KEY": "hunter2\nhunter2"},
            2,
            "ORCHEO_VAULT_ENCRYPTION_KEY cannot be written",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line_and_writes_nothing(
    arguments: tuple[str, ...], variables: Mapping[str, str], code: int, said: str, target: Path
) -> None:
    done = _run(*arguments, "--file", str(target), **variables)
    assert done.returncode == code
    assert done.stderr.startswith(f"orcheo-dispatch: {said}")
    assert len(done.stderr.splitlines()) == 1
    assert "hunter2" not in done.stdout + done.stderr
    assert not target.exists()


def test_database_without_orcheo_is_found(empty_database: Database, redis_url: str, target: Path) -> None:
    done = _run("--yes", "--file", str(target), **_addresses(empty_database, redis_url))
    assert done.returncode == 3
    assert "Orcheo's tables: workflow_runs is missing" in done.stderr
    assert not target.exists()


def test_broker_that_does_not_answer_is_found(orcheo_database: Database, target: Path) -> None:
    done = _run("--yes", "--file", str(target), **_addresses(orcheo_database, "redis://127.0.0.1:1/0"))
    assert done.returncode == 4
    assert not target.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every folder: run the tests as another user")
def test_folder_that_cannot_be_written_to_is_found_before_anything_is_asked(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = _run("--yes", "--no-check", "--file", str(tmp_path / "orcheo.env"), **{_DSN: "postgresql:///x"})
    tmp_path.chmod(0o700)
    assert done.returncode == 2


def test_folder_that_is_missing_is_found_before_anything_is_asked(tmp_path: Path) -> None:
    done = _run("--yes", "--no-check", "--file", str(tmp_path / "no/orcheo.env"), **{_DSN: "postgresql:///x"})
    assert done.returncode == 2
    assert "expected a file in a folder that is there and can be written to" in done.stderr
