"""Return run slots: the API counts the runs of each workspace in Redis, and the process that ends a run decrements it.

The API increments `orcheo:workspace:runs:{workspace_id}` when it creates a run. A slot that is not returned is
lost to the workspace; one returned twice admits one run too many. The ledger records that a slot is due; Redis
remembers for a day that it was returned, so that a repeated call changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis

from orcheo_dispatch.shared.broker.app import broker_errors, connect
from orcheo_dispatch.shared.errors import BrokerError

COUNTER = "orcheo:workspace:runs:"
_RECEIPT = "orcheo-dispatch:slot:"
_RECEIPT_SECONDS = 86_400

# Atomic: the receipt and the counter of a run change together, and no counter falls below zero. Keys are pairs, a
# counter and a receipt. A counter that is not a number affects no other; its error is returned after all are done.
_GIVE_BACK = """
local returned, failed = 0, nil
for i = 1, #KEYS, 2 do
    if redis.call('SET', KEYS[i + 1], '1', 'NX', 'EX', ARGV[1]) then
        returned = returned + 1
        if redis.call('EXISTS', KEYS[i]) == 1 then
            local left = redis.pcall('DECR', KEYS[i])
            if type(left) == 'table' then
                failed = left
            elseif left <= 0 then
                redis.call('DEL', KEYS[i])
            end
        end
    end
end
return failed or returned
"""


class RunSlots:
    """Returns run slots to the API's counters."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._give_back = client.register_script(_GIVE_BACK)

    @classmethod
    def at(cls, url: str) -> RunSlots:
        """Return an instance for the Redis at `url`."""
        return cls(connect(url))

    def give_back(self, run_id: str, workspace_id: str) -> bool:
        """Return the slot of one run to the API; return False if it had been returned before.

        Raises `BrokerError`; then the slot stays due and the dispatcher retries.
        """
        return self.give_back_all([(run_id, workspace_id)]) == 1

    def give_back_all(self, slots: Sequence[tuple[str, str]]) -> int:
        """Return the slots of several runs, each `(run_id, workspace_id)`; return how many were not returned before.

        Raises `BrokerError`; then all of them stay due, and repeating those already returned changes nothing.
        """
        keys = [key for run_id, workspace_id in slots for key in (COUNTER + workspace_id, _RECEIPT + run_id)]
        with broker_errors(self._client):
            return int(self._give_back(keys=keys, args=[_RECEIPT_SECONDS]))

    def in_use(self, workspace_id: str) -> int:
        """Return how many slots of the workspace the API counts as in use. Raises `BrokerError`."""
        with broker_errors(self._client):
            value = self._client.get(COUNTER + workspace_id)
        return counted(value, workspace_id)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def counted(value: Any, workspace_id: str) -> int:
    """Return the value of a workspace's counter, 0 if it is unset. Raises `BrokerError` if it is not a number."""
    try:
        count = int(value or 0)
    except ValueError:
        raise BrokerError(f"{COUNTER}{workspace_id} is not a number") from None
    return count
