"""Fixtures of the acceptance tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from orcheo.config import get_settings
from orcheo_backend.app import dependencies
from orcheo_backend.app.providers import create_repository, create_vault, ensure_credential_service

from ops.real.orcheo_environment import orcheo_environment
from tests.databases import Database

_NO_REDIS = "redis://127.0.0.1:1/0"


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
