"""Secrets in files: read, ranked below the environment, and never quoted."""

from __future__ import annotations

from pathlib import Path

import pytest

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.settings.credentials import export_credentials, read_credentials
from orcheo_dispatch.shared.settings.environment import export_values
from orcheo_dispatch.shared.settings.model import Settings

_DSN = "postgresql://me:hunter2@host/db"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of credentials; no setting is in the environment."""
    for name in ("ORCHEO_POSTGRES_DSN", "REDIS_URL", "ORCHEO_WORKER_CONCURRENCY", "ORCHEO_DISPATCH_TRIGGERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "ORCHEO_POSTGRES_DSN").write_text(f"{_DSN}\n")
    return tmp_path


def test_every_setting_may_be_a_credential(folder: Path) -> None:
    (folder / "ORCHEO_WORKER_CONCURRENCY").write_text("7")
    (folder / "ORCHEO_DISPATCH_TRIGGERS").write_text("cron, api")
    settings = Settings.load()
    assert settings.postgres_dsn.get_secret_value() == _DSN
    assert (settings.concurrency, settings.triggers) == (7, ("cron", "api"))


def test_environment_wins_unless_it_is_empty(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "ORCHEO_WORKER_CONCURRENCY").write_text("7")
    monkeypatch.setenv("ORCHEO_WORKER_CONCURRENCY", "")
    assert Settings.load().concurrency == 7
    monkeypatch.setenv("ORCHEO_WORKER_CONCURRENCY", "9")
    assert Settings.load().concurrency == 9
    assert Settings.load(concurrency=11).concurrency == 11


def test_empty_file_counts_as_unset_and_other_files_are_somebody_elses(folder: Path) -> None:
    (folder / "REDIS_URL").write_text("\n")
    (folder / "tls.pem").write_bytes(b"\xff")
    assert read_credentials() == {"ORCHEO_POSTGRES_DSN": _DSN}
    assert Settings.load().redis_url.get_secret_value() == "redis://localhost:6379/0"


def test_no_folder_is_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert read_credentials() == {}


def test_what_cannot_be_used_is_named_and_not_quoted(folder: Path) -> None:
    for raw, says in (
        (b"\xff\xfehunter2", "it is not UTF-8 text"),
        (b"hunter2\0", "it contains a NUL"),
        (b"hunter2" * 200_000, "it has more than 1048576 bytes"),
    ):
        (folder / "REDIS_URL").write_bytes(raw)
        with pytest.raises(SettingsError) as raised:
            Settings.load()
        assert str(raised.value) == f"credential REDIS_URL cannot be used: {says}"
        assert raised.value.exit_code == 2
    (folder / "REDIS_URL").unlink()
    (folder / "REDIS_URL").mkdir()
    with pytest.raises(SettingsError, match="credential REDIS_URL cannot be read: Is a directory"):
        Settings.load()


def test_folder_that_is_none_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder / "nowhere"))
    with pytest.raises(SettingsError, match=r"CREDENTIALS_DIRECTORY=.* is invalid: expected a readable folder"):
        Settings.load()


def test_wrong_value_of_a_credential_is_not_quoted(folder: Path) -> None:
    (folder / "ORCHEO_WORKER_CONCURRENCY").write_text("hunter2")
    with pytest.raises(SettingsError) as raised:
        Settings.load()
    assert str(raised.value).startswith("ORCHEO_WORKER_CONCURRENCY has an invalid value: expected")
    assert "hunter2" not in str(raised.value)


def test_export_sets_what_is_unset(folder: Path) -> None:
    (folder / "REDIS_URL").write_text("redis://credential")
    (folder / "ORCHEO_VAULT_ENCRYPTION_KEY").write_text("key")
    environment = {"CREDENTIALS_DIRECTORY": str(folder), "REDIS_URL": "redis://environment", "ORCHEO_POSTGRES_DSN": ""}
    export_credentials(environment)
    del environment["CREDENTIALS_DIRECTORY"]
    assert environment == {
        "REDIS_URL": "redis://environment",
        "ORCHEO_POSTGRES_DSN": _DSN,
        "ORCHEO_VAULT_ENCRYPTION_KEY": "key",
    }


def test_orcheo_gets_the_addresses_that_we_read_and_its_own_values_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "REDIS_URL").write_text("redis://credential\r\n")
    environment = {
        "CREDENTIALS_DIRECTORY": str(tmp_path),
        "ORCHEO_POSTGRES_DSN": "'postgresql+asyncpg://me:pw@host/db?ssl=require'\n",
        "REDIS_URL": " \n",
        "ORCHEO_REDIS_URL": '"redis://slots"',
        "ORCHEO_VAULT_ENCRYPTION_KEY": "'key'\n",
    }
    export_values(environment)
    assert environment == {
        "CREDENTIALS_DIRECTORY": str(tmp_path),
        "ORCHEO_POSTGRES_DSN": "postgresql://me:pw@host/db?sslmode=require",
        "REDIS_URL": "redis://credential",
        "ORCHEO_REDIS_URL": "redis://slots",
        # What the API made of it, workers must make of it too.
        "ORCHEO_VAULT_ENCRYPTION_KEY": "'key'\n",
    }


def test_credential_is_read_without_a_byte_order_mark_and_quotes(folder: Path) -> None:
    (folder / "ORCHEO_POSTGRES_DSN").write_bytes(b'\xef\xbb\xbf"' + _DSN.encode() + b'"\r\n')
    assert Settings.load().postgres_dsn.get_secret_value() == _DSN
