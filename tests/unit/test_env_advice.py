"""What `adopt` says of an environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from orcheo_dispatch.ops.adoption.env_advice import Verdict, advise, needs_work, read_env_file
from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.settings.model import Settings

_STACK = Path(__file__).parents[1] / "stack" / "stack.env"
_GOOD = {
    "ORCHEO_POSTGRES_DSN": "postgresql://orcheo:hunter2@db/orcheo",
    "REDIS_URL": "redis://:hunter2@cache:6379/0",
    "ORCHEO_REDIS_URL": "redis://:hunter2@cache:6379/0",
    "ORCHEO_VAULT_ENCRYPTION_KEY": "k" * 32,
    "ORCHEO_INPROCESS_EXECUTION": "false",
    "ORCHEO_INPROCESS_CRON": "Off",
}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields.values():
        monkeypatch.delenv(str(field.alias), raising=False)


def test_good_environment_needs_nothing() -> None:
    assert advise(_GOOD) == []


def test_env_file_of_the_stack_needs_nothing_that_the_override_does_not_set() -> None:
    found = advise(read_env_file(_STACK))
    assert not needs_work(found)
    assert {each.variable for each in found} == {
        "ORCHEO_REDIS_URL",
        "ORCHEO_INPROCESS_EXECUTION",
        "ORCHEO_INPROCESS_CRON",
        "ORCHEO_API_URL",
    }


@pytest.mark.parametrize(
    ("change", "variable", "verdict"),
    [
        ({"ORCHEO_POSTGRES_DSN": ""}, "ORCHEO_POSTGRES_DSN", Verdict.SET),
        ({"ORCHEO_POSTGRES_DSN": "mysql://x"}, "ORCHEO_POSTGRES_DSN", Verdict.CHANGE),
        ({"ORCHEO_REDIS_URL": ""}, "ORCHEO_REDIS_URL", Verdict.SET),
        ({"ORCHEO_REDIS_URL": "redis://other/0"}, "ORCHEO_REDIS_URL", Verdict.CHANGE),
        ({"REDIS_URL": ""}, "ORCHEO_REDIS_URL", Verdict.CHANGE),
        ({"ORCHEO_INPROCESS_EXECUTION": ""}, "ORCHEO_INPROCESS_EXECUTION", Verdict.SET),
        ({"ORCHEO_INPROCESS_EXECUTION": "true"}, "ORCHEO_INPROCESS_EXECUTION", Verdict.CHANGE),
        ({"ORCHEO_INPROCESS_CRON": "maybe"}, "ORCHEO_INPROCESS_CRON", Verdict.CHANGE),
        ({"ORCHEO_VAULT_ENCRYPTION_KEY": ""}, "ORCHEO_VAULT_ENCRYPTION_KEY", Verdict.SET),
        ({"ORCHEO_CHECKPOINT_BACKEND": "sqlite"}, "ORCHEO_CHECKPOINT_BACKEND", Verdict.CHANGE),
        ({"CELERY_BROKER_URL": "redis://:pass-word@x/1"}, "CELERY_BROKER_URL", Verdict.REMOVE),
        ({"CELERY_RESULT_BACKEND": "django-db"}, "CELERY_RESULT_BACKEND", Verdict.REMOVE),
        ({"ORCHEO_CELERY_BEAT_SCHEDULE_FILE": "/data/x"}, "ORCHEO_CELERY_BEAT_SCHEDULE_FILE", Verdict.NOTE),
        ({"ORCHEO_API_URL": "http://LOCALHOST:8000"}, "ORCHEO_API_URL", Verdict.NOTE),
        ({"REDIS_URL": "redis://[::1]/0", "ORCHEO_REDIS_URL": "redis://[::1]/0"}, "REDIS_URL", Verdict.NOTE),
        ({"ORCHEO_WORKER_CONCURRENCY": "many"}, "ORCHEO_WORKER_CONCURRENCY", Verdict.CHANGE),
        ({"ORCHEO_WORKER_LEASE": "1"}, "ORCHEO_WORKER_LEASE", Verdict.CHANGE),
    ],
)
def test_each_change_is_named_with_its_variable(change: dict[str, str], variable: str, verdict: Verdict) -> None:
    found = advise({**_GOOD, **change})
    assert (variable, verdict) in {(each.variable, each.verdict) for each in found}
    assert needs_work(found) == any(each.verdict is not Verdict.NOTE for each in found)
    assert "hunter2" not in str(found)
    assert "pass-word" not in str(found)


@pytest.mark.parametrize("value", ["many", "a: b", "x' is invalid: y", "="])
def test_what_is_expected_is_named_whatever_the_value_is(value: str) -> None:
    (advice,) = [each for each in advise({**_GOOD, "ORCHEO_WORKER_CONCURRENCY": value}) if "CONC" in each.variable]
    assert advice.variable == "ORCHEO_WORKER_CONCURRENCY"
    assert advice.wanted == "a valid integer, such as 5, without a unit"


def test_password_that_would_end_the_stacks_url_is_named_and_not_shown() -> None:
    (advice,) = [each for each in advise({"ORCHEO_POSTGRES_PASSWORD": "p@ss/word"}) if "PASSWORD" in each.variable]
    assert advice.verdict is Verdict.CHANGE
    assert "p@ss" not in str(advice)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=\"x y\"\nexport B='1'\n# c\nC=${A}!\n\nD=\nE", {"A": "x y", "B": "1", "C": "x y!", "D": ""}),
        ("\ufeffA=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("A=1 # a comment\nB='a#b'\n", {"A": "1", "B": "a#b"}),
    ],
)
def test_env_file_is_read_as_compose_reads_it(tmp_path: Path, text: str, expected: dict[str, str]) -> None:
    path = tmp_path / ".env"
    path.write_bytes(text.encode())
    assert read_env_file(path) == expected


@pytest.mark.parametrize("content", [None, b"A=\xff\xfe", b"#" * 2_000_000])
def test_env_file_that_cannot_be_used_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / ".env"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match="--env-file"):
        read_env_file(path)
