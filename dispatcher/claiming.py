"""Look for work and claim runs, for a poller."""

from __future__ import annotations

import time
from uuid import UUID

from orcheo_dispatch.shared.ledger.model import TURNS_INDEX, Claim, Look
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.ledger.turns import Limits, Turns
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.traces.claims import ClaimTraces


class Claimer:
    """Looks and claims for one dispatcher, and keeps its place in the rotation. Methods raise `DatabaseError`."""

    def __init__(self, settings: Settings, store: Store, dispatcher_id: UUID, traces: ClaimTraces) -> None:
        self._settings = settings
        self._store = store
        self._id = dispatcher_id
        self._traces = traces
        self._turns = Turns()
        self._limited = self._rated = self._named_queues = True
        self.maintenance = False
        """Whether, as of the last look, nothing is claimed because an operator said so."""
        self._in_turn = True
        self._queued = 0

    def look(self) -> Look:
        """Return what there is to do."""
        look = self._store.look(triggers=self._settings.triggers, every_trigger=self._settings.takes_every_trigger)
        self._note_index(look.in_turn)
        self._queued = look.queued
        self._limited, self._rated, self._named_queues = look.limited, look.rated, look.named_queues
        self._note_maintenance(look.maintenance)
        return look

    def everything(self) -> Look:
        """Return a `Look` that assumes there is work for every step but reaping, for a poll whose look failed."""
        return Look(
            lost=False,
            lapsed=True,
            retries=True,
            queued=self._queued,
            pending=True,
            in_turn=self._in_turn,
            at=None,
            maintenance=self.maintenance,
        )

    def queued(self) -> int:
        """Return how many claimed runs have not begun."""
        return self._store.queued()

    def claim(self, room: int, default_room: int) -> tuple[list[Claim], bool]:
        """Claim up to `room` runs, `default_room` of the default queue; return them, and whether there are more."""
        settings = self._settings
        began = time.monotonic()
        claims = self._store.claim(
            room,
            triggers=settings.triggers,
            every_trigger=settings.takes_every_trigger,
            lease=settings.lease,
            dispatcher_id=self._id,
            turns=self._turns,
            limits=Limits(
                settings.max_running_per_workflow,
                settings.max_running_per_workspace,
                by_policy=self._limited,
                rated=self._rated,
            ),
            in_turn=self._in_turn,
            default_room=default_room,
            max_queued=settings.max_queued,
            consumed=(self._named_queues and self._store.consumed_queues()) or (),
        )
        self._traces.claimed(claims, began)
        return claims, self._turns.more

    def _note_maintenance(self, on: bool) -> None:
        """Log when maintenance begins and ends."""
        if on and not self.maintenance:
            log.warning("maintenance_began", remedy="orcheo-dispatch maintenance off")
        elif not on and self.maintenance:
            log.info("maintenance_ended")
        self.maintenance = on

    def _note_index(self, there: bool) -> None:
        """Log when the index needed for claiming in turn appears or disappears."""
        if there and not self._in_turn:
            log.info("index_found", index=TURNS_INDEX)
        elif not there and self._in_turn:
            log.warning("index_missing", index=TURNS_INDEX, remedy="orcheo-dispatch migrate")
        self._in_turn = there
