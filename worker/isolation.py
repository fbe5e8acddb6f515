"""Decide which runs get a runner of their own: from memory, synchronised with the ledger by a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from orcheo_dispatch.shared.database.connections import make_engine
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger.isolations import Isolations
from orcheo_dispatch.shared.ledger.runs import Run
from orcheo_dispatch.shared.logs.lines import describe, log
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.settings.policies import WorkerIsolation

REFRESH_SECONDS = 2.0
_PAUSE_SECONDS = 0.2
"""Minimum pause between two reads (seconds), however often there is something to write."""
_FIRST_SECONDS = 5.0
"""How long a start waits for the ledger's isolations (seconds); runs that begin before they are read share a runner."""
_STOP_SECONDS = 5.0
_PATIENCE_SECONDS = 60.0
"""Maximum time of one round (seconds): its waits for a connection and for statements have timeouts below this."""
_WRITTEN_AT_A_TIME = 10
"""Each may wait a second for a locked row, and reading must not be delayed for long."""


@dataclass(frozen=True, slots=True)
class _Harm:
    """Harm done by the runs of a version that is not yet recorded in the ledger."""

    workflow_id: str
    reason: str
    times: int


class Isolation:
    """Under `adaptive`, record what has harmed other runs, what an operator isolated, and which versions are suspects.

    All methods but `start` and `stop` may be called from any thread, and never wait for the database. A conviction
    takes effect at once in this process, and in other workers when both have synchronised with the ledger, within two
    seconds each.
    """

    def __init__(self, settings: Settings) -> None:
        self._mode = settings.isolation
        self._engine = make_engine(settings, role="isolation", connections=1)
        self._isolations = Isolations(self._engine)
        self._lock = threading.Lock()
        self._workflows: frozenset[str] = frozenset()
        self._versions: frozenset[str] = frozenset()
        self._convicted: set[str] = set()
        """Versions that are isolated although the last read did not return them."""
        self._suspected: set[str] = set()
        """Versions of which one may have harmed others; each stays until one of its runs has been alone."""
        self._unwritten: dict[str, _Harm] = {}
        self._problem: Mapping[str, Any] | None = None
        self._turned_at = time.monotonic()
        self._looked = threading.Event()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="isolation", daemon=True)

    def start(self) -> None:
        """Read the isolations in the ledger, within a few seconds, and stay synchronised with it from now on."""
        if self._mode is WorkerIsolation.ADAPTIVE:
            self._turned_at = time.monotonic()
            self._thread.start()
            self._looked.wait(_FIRST_SECONDS)

    def stop(self) -> None:
        """Write what is not yet written, and disconnect; do not wait for a database that does not answer."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    @property
    def makes_progress(self) -> bool:
        """Whether synchronisation with the ledger is at least attempted in time."""
        return self._mode is not WorkerIsolation.ADAPTIVE or time.monotonic() - self._turned_at < _PATIENCE_SECONDS

    def is_isolated(self, run: Run) -> bool:
        """Return whether a run must be alone in its runner: what operators decided for it, else the setting."""
        mode = run.rules.isolation or self._mode
        if mode is WorkerIsolation.ADAPTIVE:
            return run.suspect or run.workflow_version_id in self._suspected or self._is_known(run)
        return run.suspect or mode is WorkerIsolation.PROCESS

    def convict(self, run: Run, reason: str) -> None:
        """Isolate all runs of this run's workflow version for a day from now on."""
        if self._mode is not WorkerIsolation.ADAPTIVE:
            return
        version = run.workflow_version_id
        with self._lock:
            known = self._is_known(run)
            before = self._unwritten.get(version)
            self._unwritten[version] = _Harm(run.workflow_id, reason, 1 + (before.times if before is not None else 0))
            self._convicted.add(version)
        self._wake.set()
        if not known:
            log.warning("workflow_isolated", workflow_id=run.workflow_id, version_id=version, reason=reason)

    def suspect(self, run: Run) -> None:
        """Have the next run of this version be alone: one of several runs harmed others, and it is not known which."""
        self._suspected.add(run.workflow_version_id)

    def acquit(self, run: Run) -> None:
        """Clear the suspicion of a version: one of its runs was alone and ended by itself. A conviction stays."""
        self._suspected.discard(run.workflow_version_id)

    def _is_known(self, run: Run) -> bool:
        version = run.workflow_version_id
        return version in self._convicted or version in self._versions or run.workflow_id in self._workflows

    # --- the thread

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._turned_at = time.monotonic()
                self._look()
                self._looked.set()
                self._stopping.wait(_PAUSE_SECONDS)
                self._wake.wait(REFRESH_SECONDS - _PAUSE_SECONDS)
                self._wake.clear()
            self._look()
        finally:
            # Here, while no statement is running: a connection in use would be left open.
            self._engine.dispose()

    def _look(self) -> None:
        """Write what the ledger does not have yet, and read what it has. Never raises."""
        problem = None
        for step in (self._write, self._read):
            try:
                problem = step() or problem
            except Exception as error:  # noqa: BLE001 - this thread must not end: log it and retry
                problem = _fields(error)
        self._tell(problem)

    def _write(self) -> Mapping[str, Any] | None:
        """Write each conviction by itself; return the last error. Those that were not written are retried last."""
        with self._lock:
            harms = dict(islice(self._unwritten.items(), _WRITTEN_AT_A_TIME))
            for version in harms:
                del self._unwritten[version]
        problem = None
        for version, harm in harms.items():
            try:
                self._isolations.record_harm(harm.workflow_id, version, harm.reason, times=harm.times)
            except Exception as error:  # noqa: BLE001 - one that cannot be written must not delay the others
                problem = _fields(error)
                with self._lock:
                    later = self._unwritten.pop(version, None)
                    times = harm.times + (later.times if later is not None else 0)
                    self._unwritten[version] = replace(later or harm, times=times)
        if harms and problem is None:
            self._isolations.prune()
        return problem

    def _read(self) -> None:
        held = self._isolations.held()
        with self._lock:
            self._workflows = frozenset(each.workflow_id for each in held if each.workflow_version_id is None)
            self._versions = frozenset(each.workflow_version_id for each in held if each.workflow_version_id)
            # `held` contains what was written before this read; convictions that an operator has cleared are dropped.
            self._convicted = set(self._unwritten)

    def _tell(self, problem: Mapping[str, Any] | None) -> None:
        """Log when synchronising with the ledger begins to fail, and when it works again; not each time."""
        if (problem is None) == (self._problem is None):
            return
        self._problem = problem
        if problem is not None:
            log.warning("isolation_not_synchronized", **problem)
        else:
            log.info("isolation_synchronized")


def _fields(error: Exception) -> dict[str, Any]:
    return {"reason": str(error)} if isinstance(error, DatabaseError) else describe(error)
