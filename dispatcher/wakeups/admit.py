"""Admit runs that the API pushed, so that they are claimed whatever their label."""

from __future__ import annotations

from uuid import UUID

from orcheo_dispatch.shared.ledger.model import Admission
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

    def pushed(self, run_id: str, workspace_id: str | None) -> Admission:
        """Admit a run that the API pushed, if it needs to be admitted. Raises `DatabaseError`."""
        admission = self._store.admit_pushed(
            run_id,
            workspace_id,
            triggers=self._settings.triggers,
            every_trigger=self._settings.takes_every_trigger,
            dispatcher_id=self._id,
        )
        if admission.refused:
            log.warning("push_refused", run_id=run_id, reason="workspace_foreign")
        return admission

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
