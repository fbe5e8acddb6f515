"""A host with our units, booted. Only where it is asked for: `tox -e systemd` or `make systemd`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.database.databases import Database
from tests.systemd.box import Box, why_not
from tests.systemd.host import Host

_ASKED = "TEST_SYSTEMD"
_MUST = "TEST_SYSTEMD_MUST"
"""Where this is set a machine that cannot boot a box fails the session instead of skipping."""
_FOLDER = Path(__file__).parents[2] / ".systemd-box"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what boots, saying what is missing and how to get it."""
    asked = bool(os.environ.get(_ASKED))
    if asked and why_not() and os.environ.get(_MUST):
        pytest.exit(f"no systemd is booted: {why_not()}", returncode=1)
    reason = f"no systemd is booted: {why_not() if asked else f'run make systemd, or set {_ASKED}=1'}"
    for item in items:
        if Path(__file__).parent in item.path.parents:
            # The first boot makes the container's files.
            item.add_marker(pytest.mark.timeout(900))
            if not asked or why_not():
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def box() -> Iterator[Box]:
    """A booted container with a user for our processes."""
    _FOLDER.mkdir(exist_ok=True)
    with Box(_FOLDER) as box:
        box.run("useradd", "--system", "--home-dir", "/var/lib/orcheo", "--shell", "/usr/sbin/nologin", "orcheo")
        yield box


@pytest.fixture
def host(box: Box, database: Database, redis_url: str) -> Iterator[Host]:
    """The units as `orcheo-dispatch units --write` leaves them, on the test's own database and Redis."""
    host = Host(box, database, redis_url)
    host.install()
    yield host
    host.clean()
