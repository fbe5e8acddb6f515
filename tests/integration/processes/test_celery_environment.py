"""Celery's own variables in the environment of our processes, as another application's `.env` has them."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from tests.support.database.databases import Database
from tests.support.database.runs import everything, insert_runs
from tests.support.processes.processes import Stack, until

_NOWHERE = "redis://:hunter2@127.0.0.1:1/0"
_ENVIRONMENTS = {
    "broker leads nowhere": {"CELERY_BROKER_URL": _NOWHERE},
    "read and write lead nowhere": {"CELERY_BROKER_READ_URL": _NOWHERE, "CELERY_BROKER_WRITE_URL": _NOWHERE},
    "result backend of Django": {"CELERY_RESULT_BACKEND": "django-db"},
    "result backend leads nowhere": {"CELERY_RESULT_BACKEND": _NOWHERE},
    "loader, configuration and Django": {
        "CELERY_LOADER": "somebody.elses:Loader",
        "CELERY_CONFIG_MODULE": "somebody.elses.celeryconfig",
        "DJANGO_SETTINGS_MODULE": "somebody.elses.settings",
    },
    "no numbers": {"CELERY_WORKER_REVOKES_MAX": "many", "PICKLE_PROTOCOL": "new", "C_WNOCONF": "perhaps"},
    "signals and apps": {"REMAP_SIGTERM": "SIGQUIT", "C_STRICT_APP": "1", "CELERY_TRACE_APP": "1"},
}


@pytest.fixture
def stack(database: Database, redis_url: str, tmp_path: Path) -> Stack:
    return Stack(database, redis_url, tmp_path / "side-effects")


def _succeeded(database: Database) -> bool:
    return everything(database, "SELECT DISTINCT status FROM workflow_runs") == [{"status": "succeeded"}]


@pytest.mark.parametrize("environment", _ENVIRONMENTS.values(), ids=_ENVIRONMENTS)
def test_variables_of_another_application_change_nothing(
    database: Database, stack: Stack, environment: dict[str, str]
) -> None:
    insert_runs(database, 20)
    with ExitStack() as running:
        processes = [
            running.enter_context(stack.running(kind, **environment)) for kind in ("worker", "dispatcher", "beat")
        ]
        until(lambda: _succeeded(database), what="every run succeeded")
    names = ", ".join(sorted(environment))
    for process in processes:
        (line,) = [line for line in process.lines if "celery_environment_ignored" in line]
        assert names in line
        assert "hunter2" not in process.log


def test_broker_in_another_database_is_not_used(database: Database, stack: Stack, redis_url: str) -> None:
    other = f"{redis_url.rpartition('/')[0]}/9"
    insert_runs(database, 5)
    with (
        redis.Redis.from_url(other) as client,
        stack.running("worker", CELERY_BROKER_URL=other),
        stack.running("dispatcher", CELERY_BROKER_URL=other),
        stack.running("beat", CELERY_BROKER_URL=other),
    ):
        until(lambda: _succeeded(database), what="every run succeeded")
        assert client.dbsize() == 0


@pytest.mark.parametrize("variable", ["CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "REMAP_SIGTERM"])
def test_check_names_the_variable(stack: Stack, variable: str) -> None:
    with stack.command("check", "--json", **{variable: _NOWHERE}) as process:
        assert process.exit_code() == 0
        process.finish()
    (found,) = [each for each in json.loads(process.log) if each["what"] == "Celery's environment"]
    assert found["grade"] == "warn"
    assert found["found"].startswith(variable)
    assert "hunter2" not in process.log


def test_poll_by_hand_publishes_to_the_broker_of_the_settings(database: Database, stack: Stack) -> None:
    insert_runs(database, 3)
    with stack.command("poll", CELERY_BROKER_URL=_NOWHERE) as process:
        assert process.exit_code() == 0
        process.finish()
    assert "claimed 3, published 3" in process.log
