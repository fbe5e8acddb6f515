"""Find run slots that no live run holds, by comparing the API's counters in Redis with the runs in the table.

The API raises a counter before it commits the run, and whoever ends a run lowers it afterwards. So the counters are
read first, what is under way is given time to arrive, and runs that ended a moment ago still count as holders: a slot
is reported as leaked only if no process can still be about to return it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import redis
from sqlalchemy import Engine, text

from orcheo_dispatch.shared.broker.app import broker_errors
from orcheo_dispatch.shared.broker.slots import COUNTER, counted
from orcheo_dispatch.shared.database.connections import transaction

SETTLE_SECONDS = 3.0
"""A request of the API that has taken a slot has committed its run, or has given the slot back, by then."""
_ENDED_SECONDS = 60.0
"""Time within which the slot of an ended run is returned (seconds)."""
_CANCELLED_SECONDS = 86_400.0
"""Period in which the dispatcher returns the slots of runs that were cancelled before any claim (seconds)."""
_ONCE_SECONDS = 60

_WORKSPACES = text("SELECT id::text AS id FROM workspaces")
_HOLDERS = text("""
SELECT r.workspace_id, count(*) AS holders
  FROM workflow_runs AS r
  LEFT JOIN orcheo_dispatch.dispatch AS d ON d.run_id = r.id
 WHERE r.workspace_id = ANY (CAST(:workspaces AS text[]))
   AND (r.status IN ('pending', 'running')
        OR r.updated_at > now() - make_interval(secs => :ended)
        OR d.slot IN ('held', 'due') OR r.id = ANY (CAST(:held AS text[]))
        OR (r.status = 'cancelled' AND d.run_id IS NULL AND r.updated_at > now() - make_interval(secs => :cancelled)))
 GROUP BY r.workspace_id
""")

# Two operators must not give the same slots back twice, and a counter that has expired since it was read is not the
# one that was compared.
_GIVE_BACK = """
local left, leaked = redis.call('PTTL', KEYS[1]), tonumber(ARGV[1])
local count = tonumber(redis.call('GET', KEYS[1]) or '0')
if count < leaked or left > tonumber(ARGV[2]) then return 0 end
if not redis.call('SET', KEYS[2], '1', 'NX', 'EX', ARGV[3]) then return 0 end
if redis.call('DECRBY', KEYS[1], leaked) <= 0 then redis.call('DEL', KEYS[1]) end
return leaked
"""


@dataclass(frozen=True, slots=True)
class LeakedSlots:
    """The slots of one workspace: how many the API counts, how many runs may hold one, how many are leaked."""

    workspace_id: str
    counted: int
    holders: int
    leaked: int

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints; these names are stable."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Counter:
    count: int
    expires_in: int
    """Milliseconds; -1 where it does not expire."""


class SlotAudit:
    """Compares the counters of one Redis with the runs of one database."""

    def __init__(
        self,
        engine: Engine,
        client: redis.Redis,
        *,
        settle: float = SETTLE_SECONDS,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._engine = engine
        self._client = client
        self._settle = settle
        self._wait = wait
        self._seen: dict[str, _Counter] = {}
        self._held: frozenset[str] = frozenset()

    def leaked(self, held: frozenset[str]) -> list[LeakedSlots]:
        """Return the workspaces with leaked slots. Raises `DatabaseError` and `BrokerError`.

        `held` are runs that a worker of Orcheo's executes still, whatever became of them in the table.
        """
        self._held = held
        with transaction(self._engine) as connection:
            workspaces = [str(row.id) for row in connection.execute(_WORKSPACES)]
        self._seen = {each: counter for each in workspaces if (counter := self._counter(each)).count > 0}
        if not self._compare():
            return []
        # Something looks leaked: let what is under way arrive, and look again.
        self._wait(self._settle)
        again = {each: self._counter(each) for each in self._seen}
        self._seen = {
            each: _Counter(min(before.count, again[each].count), again[each].expires_in)
            for each, before in self._seen.items()
        }
        return self._compare()

    def give_back(self, found: LeakedSlots) -> int:
        """Give the leaked slots of a workspace back; return how many: none where its counter is another by now."""
        keys = [COUNTER + found.workspace_id, f"orcheo-dispatch:slots-adopted:{found.workspace_id}"]
        seen = self._seen[found.workspace_id]
        with broker_errors():
            given = self._client.eval(_GIVE_BACK, 2, *keys, found.leaked, seen.expires_in, _ONCE_SECONDS)
        return int(str(given))

    def _compare(self) -> list[LeakedSlots]:
        parameters = {
            "workspaces": list(self._seen),
            "held": list(self._held),
            "ended": _ENDED_SECONDS,
            "cancelled": _CANCELLED_SECONDS,
        }
        with transaction(self._engine) as connection:
            rows = {row.workspace_id: row.holders for row in connection.execute(_HOLDERS, parameters)}
        return [
            LeakedSlots(each, counter.count, rows.get(each, 0), counter.count - rows.get(each, 0))
            for each, counter in self._seen.items()
            if counter.count > rows.get(each, 0)
        ]

    def _counter(self, workspace_id: str) -> _Counter:
        with broker_errors(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.get(COUNTER + workspace_id)
            pipeline.pttl(COUNTER + workspace_id)
            count, expires_in = pipeline.execute()
        return _Counter(counted(count, workspace_id), int(expires_in))
