"""Values that another program has written under our names, or those of Orcheo's API, in Redis."""

from __future__ import annotations

from uuid import uuid4

import pytest
import redis

from orcheo_dispatch.dispatcher.publishing.queue_choice import QueueChoice
from orcheo_dispatch.ops.adoption.leaked_slots import SlotAudit
from orcheo_dispatch.shared.broker.readers import Readers
from orcheo_dispatch.shared.broker.slots import COUNTER, RunSlots
from orcheo_dispatch.shared.errors import BrokerError
from orcheo_dispatch.shared.ledger.model import ProcessKind
from orcheo_dispatch.shared.ledger.processes import Process
from tests.support.database.databases import Database
from tests.support.database.runs import installation_of, one, store_of


@pytest.mark.parametrize("note", [b"", b"x", b"1.0", b"2"])
def test_dispatcher_publishes_to_its_own_queue_beside_a_note_that_is_none(
    database: Database, redis_url: str, note: bytes
) -> None:
    """Otherwise the one value would keep all runs from being published."""
    installation = installation_of(database)
    with redis.Redis.from_url(redis_url) as client, store_of(database) as (store, engine):
        worker = Process(ProcessKind.WORKER, id=uuid4(), host="h", pid=1)
        worker.seen(engine)
        client.set(installation.reader(str(worker.id)), note)
        assert QueueChoice(store, client, installation, lease=300).queue() == installation.runs
        readers = Readers(client, installation, store, lease=300)
        assert readers.survey().new == frozenset()
        readers.note(worker.id)
        assert readers.survey().new == {str(worker.id)}


def test_counter_that_is_no_number_is_one_line_that_names_it(database: Database, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client, store_of(database) as (_, engine):
        workspace = one(database, "SELECT id::text AS id FROM workspaces")["id"]
        client.set(COUNTER + workspace, "many")
        line = f"^{COUNTER}{workspace} is not a number$"
        with pytest.raises(BrokerError, match=line):
            RunSlots(client).in_use(workspace)
        with pytest.raises(BrokerError, match=line):
            SlotAudit(engine, client).leaked(frozenset())
