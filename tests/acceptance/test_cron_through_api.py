"""Cron through Orcheo's real API, under each of its ways to authenticate, for several workspaces."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orcheo_dispatch.dispatcher.cron import ApiCron
from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from orcheo_dispatch.ops.sandbox.orcheo_client import Record
from orcheo_dispatch.shared.settings.addresses import Origin
from tests.support.database.databases import Database
from tests.support.orcheo import crons

_TOKEN = "only-for-tests-service-token"
# Orcheo closes no connection of the stores that this process replaces.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


class _Api(OrcheoApi):
    """The API on a database that has its tables and workspaces already."""

    def workspaces(self) -> list[Record]:
        return [{}]

    def workflows(self) -> list[Record]:
        return []


@pytest.mark.parametrize("mode", ["required", "optional", "disabled"])
def test_runs_of_all_workspaces_are_created_with_the_token_that_the_api_asks_for(
    orcheo_here: Database, redis_url: str, tmp_path: Path, mode: str
) -> None:
    start = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=1)
    workspaces = []

    async def create() -> None:
        # The token is that of a member of the first; triggers of all are dispatched all the same.
        for slug, owner in (("a", "bootstrap"), ("b", "ada")):
            workspaces.append(crons.create_workspace(orcheo_here, slug, owner=owner))
            await crons.create_trigger(
                workspaces[-1], expression="* * * * *", allow_overlapping=True, start_at=start, timezone="UTC"
            )

    crons.play(create)
    api = _Api(orcheo_here.dsn, redis_url, tmp_path / "api")
    api.variables |= {"ORCHEO_AUTH_MODE": mode, "ORCHEO_AUTH_BOOTSTRAP_SERVICE_TOKEN": _TOKEN}
    api._environment = {**api._environment, **api.variables}
    if mode != "disabled":
        api._http.headers["Authorization"] = f"Bearer {_TOKEN}"
    with api:
        reports = {
            token: ApiCron(Origin.of(api.url), token)() for token in (None, "a-token-that-nobody-issued", _TOKEN)
        }
    outcomes = {token: report.outcome for token, report in reports.items() if report is not None}
    if mode == "disabled":
        assert outcomes[None] == "succeeded"
    else:
        assert outcomes == {
            None: "unauthorized",
            "a-token-that-nobody-issued": "unauthorized",
            _TOKEN: "succeeded",
        }
    created = crons.cron_runs(orcheo_here)
    assert {run["workspace_id"] for run in created} == set(workspaces)
    assert sum(report.runs for report in reports.values() if report is not None) == len(created)
