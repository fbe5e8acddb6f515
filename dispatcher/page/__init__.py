"""The status page for operators. It reads on its own thread and connection, and acts, if that is on, on others."""

from __future__ import annotations

from collections.abc import Sequence

from orcheo_dispatch.dispatcher.page.actions import Actions
from orcheo_dispatch.dispatcher.page.routes import page_routes
from orcheo_dispatch.dispatcher.page.watch import Watch
from orcheo_dispatch.shared.database.connections import make_engine
from orcheo_dispatch.shared.health.checks import Check
from orcheo_dispatch.shared.health.routes import Route
from orcheo_dispatch.shared.ledger.processes import Process
from orcheo_dispatch.shared.settings.model import Settings


class StatusPage:
    """The page of one dispatcher, if a health port is set; otherwise it opens nothing."""

    def __init__(self, settings: Settings, process: Process) -> None:
        self._settings = settings
        self._process = process
        self._watch: Watch | None = None
        self._actions: Actions | None = None

    def routes(self, checks: Sequence[Check]) -> dict[str, Route]:
        """Start reading and return the routes; `checks` report the health of this process."""
        if self._settings.health_port == 0:
            return {}
        self._watch = Watch(make_engine(self._settings, role="page", connections=1), checks=checks)
        self._watch.start()
        self._actions = Actions(self._settings)
        shown = page_routes(
            self._watch,
            self._process,
            guarded=self._settings.health_token is not None,
            actions=self._actions.on,
        )
        return {**shown, **self._actions.routes()}

    def close(self) -> None:
        """Stop reading and close the connections. May be called repeatedly, and before `routes`."""
        if self._watch is not None:
            self._watch.stop()
        if self._actions is not None:
            self._actions.close()
