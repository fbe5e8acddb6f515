"""Send a worker's messages: claims that it has no room for, and wake-ups for dispatchers."""

from __future__ import annotations

from collections.abc import Sequence

from orcheo_dispatch.shared.broker.app import TICK, broker_errors, send_claims
from orcheo_dispatch.shared.broker.celery_app import App
from orcheo_dispatch.shared.broker.faults import is_read_only
from orcheo_dispatch.shared.broker.installation import Installation
from orcheo_dispatch.shared.errors import BrokerError
from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.logs.lines import log


class Wire:
    """Publish through the Celery app of this worker."""

    def __init__(self, app: App, installation: Installation) -> None:
        self._app = app
        self._installation = installation

    def hand_back(self, claims: Sequence[Claim], *, returns: int = 0, queue: str | None = None) -> None:
        """Publish these runs again under the same fences, for a worker that has room. Raises `BrokerError`.

        `queue` is the one that they were delivered from; None: the default queue.
        """
        try:
            with broker_errors():
                send_claims(self._app, self._installation, claims, queue=queue, returns=returns)
        except BrokerError as error:
            if is_read_only(error):
                self._app.forget_connections()
            raise

    def wake_dispatchers(self) -> None:
        """Tell the dispatchers that a run is pending again."""
        try:
            with broker_errors():
                self._app.send_task(TICK, queue=self._installation.dispatch, retry=False, ignore_result=True)
        except BrokerError as error:
            # The next poll finds the run anyway.
            log.debug("dispatchers_not_woken", reason=str(error))
