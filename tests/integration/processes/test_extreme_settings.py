"""Each accepted extreme of each numeric setting leaves the loops of a dispatcher going."""

from __future__ import annotations

import math
from typing import Any

import annotated_types
import pytest

from orcheo_dispatch.dispatcher.app import Dispatcher, make_dispatcher_app
from orcheo_dispatch.shared.broker.installation import find_installation
from orcheo_dispatch.shared.settings.model import Settings
from tests.support.database.databases import Database
from tests.support.database.runs import insert_runs, ledger, settings_for
from tests.support.processes.processes import until

_NOT_OURS = {"health_port"}


def _extremes(*, highest: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        for bound in field.metadata:
            if highest and isinstance(bound, annotated_types.Le):
                found[name] = bound.le
            elif not highest and isinstance(bound, annotated_types.Ge):
                found[name] = bound.ge
            elif not highest and isinstance(bound, annotated_types.Gt):
                found[name] = math.nextafter(float(bound.gt), math.inf)  # type: ignore[arg-type]
    return {name: value for name, value in found.items() if name not in _NOT_OURS}


@pytest.mark.parametrize("highest", [True, False], ids=["highest", "lowest"])
def test_dispatcher_works_with_the_extremes_of_all_settings(database: Database, redis_url: str, highest: bool) -> None:
    settings = settings_for(database, redis_url, **_extremes(highest=highest))
    installation = find_installation(settings)
    app = make_dispatcher_app(settings, installation)
    dispatcher = Dispatcher(settings, app, installation)
    try:
        dispatcher.loop.start()
        dispatcher.upkeep.start()
        for _ in range(3):
            (run_id,) = insert_runs(database)
            dispatcher.loop.wake()
            until(lambda: _is_claimed(database, run_id), what="the run is claimed")  # noqa: B023
            if not highest:
                break
        assert dispatcher.poller.poll().failing == ()
        assert dispatcher.loop._thread.is_alive()
        assert dispatcher.upkeep._thread.is_alive()
        dispatcher.loop.stop()
        dispatcher.upkeep.stop()
    finally:
        dispatcher.close()
        app.close()


def _is_claimed(database: Database, run_id: str) -> bool:
    try:
        return bool(ledger(database, run_id)["state"] in ("claimed", "published"))
    except AssertionError:
        return False
