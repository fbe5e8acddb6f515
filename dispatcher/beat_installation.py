"""Determine which installation Beat belongs to: from the settings, or from the database once it answers.

Beat does not need the database. Until it knows its installation, it sends ticks to the queue that every dispatcher on
this Redis reads, as earlier releases do. A tick of another installation costs a dispatcher one poll.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from orcheo_dispatch.shared.broker.installation import Installation, find_installation
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.settings.model import Settings

_RETRY_SECONDS = (5.0, 300.0)


class BeatInstallation:
    """Looks up the installation on its own thread, with growing delays between attempts.

    `find` may raise `DatabaseError`.
    """

    def __init__(self, settings: Settings, find: Callable[[Settings], Installation] = find_installation) -> None:
        self._settings = settings
        self._find = find
        self.known: Installation | None = None
        """The installation; None until it is known."""

    def start(self) -> None:
        """Take the installation from the settings, or look it up in the background until the database answers."""
        if self._settings.namespace:
            self._learn()
        else:
            threading.Thread(target=self._run, name="installation", daemon=True).start()

    def _run(self) -> None:
        pause, longest = _RETRY_SECONDS
        said = False
        while True:
            try:
                self._learn()
            except DatabaseError as error:
                if not said:
                    log.warning(
                        "installation_unknown", reason=str(error), ticks="to the dispatchers of all installations"
                    )
                said = True
            else:
                return
            threading.Event().wait(pause)
            pause = min(2 * pause, longest)

    def _learn(self) -> None:
        self.known = self._find(self._settings)
        log.info("installation_known", installation=self.known.name)
