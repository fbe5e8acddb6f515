"""Admit runs that the API pushed, so that they are claimed whatever their label."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from orcheo_dispatch.shared.ledger.model import Admission, Push
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.settings.model import Settings

PUSH_PATIENCE_SECONDS = 10.0
"""Age of a pending run from which its push is considered lost."""
_BATCH = 1000


class Admitter:
    """Adds pushed runs whose labels are not on the allow-list to the ledger, so that the next claim takes them."""

    def __init__(self, settings: Settings, store: Store, dispatcher_id: UUID) -> None:
        self._settings = settings
        self._store = store
        self._id = dispatcher_id

    def pushed(self, pushes: Sequence[Push]) -> dict[Push, Admission]:
        """Admit those runs that the API pushed and that need to be admitted; see `Store.admit_pushed`."""
        admissions = self._store.admit_pushed(
            pushes,
            triggers=self._settings.triggers,
            every_trigger=self._settings.takes_every_trigger,
            dispatcher_id=self._id,
        )
        for push, admission in admissions.items():
            if admission.refused:
                log.warning("push_refused", run_id=push.run_id, reason="workspace_foreign")
        return admissions

    def lost(self) -> None:
        """Admit runs whose push was lost because Redis was flushed, or unavailable when the API pushed them."""
        admitted = self._store.admit_labelled(
            triggers=self._settings.triggers,
            every_trigger=self._settings.takes_every_trigger,
            older_than=PUSH_PATIENCE_SECONDS,
            dispatcher_id=self._id,
            batch=_BATCH,
        )
        for run_id in admitted:
            log.info("run_admitted", run_id=run_id, reason="push_lost")
