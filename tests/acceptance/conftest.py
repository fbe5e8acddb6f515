"""Fixtures of the acceptance tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from orcheo.config import get_settings
from orcheo_backend.app import dependencies
from orcheo_backend.app.providers import create_repository, create_vault, ensure_credential_service

from orcheo_dispatch.ops.sandbox.orcheo_environment import orcheo_environment
from tests.support.database.databases import Database
from tests.support.processes.logbook import LOGBOOK

_NO_REDIS = "redis://127.0.0.1:1/0"
# What the webhooks of these tests bring, and what workflows make of it; credentials and what errors quote.
_PLANTED = {
    "inputs": ("Ada", "Bob", "Eve", "xylophone"),
    "an output": ("hello",),
    "an error": ("no luck",),
    "a credential": ("swordfish", "hunter2"),
}


@pytest.fixture(scope="session", autouse=True)
def no_secret_in_any_log() -> Iterator[None]:
    """Search the logs of all our processes of the suite, when all of them have ended, for what must not be there."""
    for what, secrets in _PLANTED.items():
        for secret in secrets:
            LOGBOOK.plant(secret, what)
    yield
    leaks = list(LOGBOOK.leaks())
    assert not leaks, f"{len(leaks)} lines with secrets:\n" + "\n".join(leaks[:20])


@pytest.fixture
def orcheo_here(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """The test's database, with Orcheo's settings and stores of this process pointed at it."""
    for name, value in orcheo_environment(database.dsn, _NO_REDIS, tmp_path).items():
        monkeypatch.setenv(name, value)
    settings = get_settings(refresh=True)
    vault = create_vault(settings)
    dependencies.set_vault(vault)
    service = ensure_credential_service(settings, vault)
    dependencies.set_credential_service(service)
    histories: dict[str, Any] = {}
    dependencies.set_repository(create_repository(settings, service, histories))
    dependencies.set_history_store(histories["store"])
    return database
