"""Fixtures of tests with our own processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.database.databases import Database
from tests.support.processes.processes import Stack


@pytest.fixture
def stack(database: Database, redis_url: str, tmp_path: Path) -> Stack:
    """What starts our processes on the test's own database and Redis."""
    return Stack(database, redis_url, tmp_path / "side-effects")
