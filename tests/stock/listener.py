"""Dispatches an event of a listener for each workflow, through Orcheo's own repository, and prints the runs' ids.

Started as a process of its own, with the API's environment: `python listener.py workflow-id ...`.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, cast
from uuid import UUID, uuid4

from orcheo.listeners.models import ListenerDispatchPayload, ListenerSubscription
from orcheo_backend.app.dependencies import get_repository

_INSERT = """
INSERT INTO listener_subscriptions
       (id, workflow_id, workflow_version_id, node_name, platform, bot_identity_key, status, payload,
        created_at, updated_at)
VALUES (%s, %s, %s, 'listen', 'test', 'bot', 'active', %s, now(), now())
"""
_DELETE = "DELETE FROM listener_subscriptions WHERE id = %s"


async def dispatch(workflow_id: UUID) -> str:
    """Dispatch an event for the newest version of a workflow; return the id of its run."""
    repository = cast("Any", get_repository())
    version = await repository.get_latest_version(workflow_id)
    subscription = ListenerSubscription(
        workflow_id=workflow_id,
        workflow_version_id=version.id,
        node_name="listen",
        platform="test",
        bot_identity_key="bot",
    )
    row = (str(subscription.id), str(workflow_id), str(version.id), subscription.model_dump_json())
    event = ListenerDispatchPayload(platform="test", event_type="message", dedupe_key=str(uuid4()), bot_identity="bot")
    async with repository._connection() as connection:
        await connection.execute(_INSERT, row)
    run = await repository.dispatch_listener_event(subscription.id, event)
    # Before the API's runtime for listeners looks for new ones.
    async with repository._connection() as connection:
        await connection.execute(_DELETE, row[:1])
    return str(run.id)


async def main(workflow_ids: list[str]) -> None:
    """Dispatch an event for each."""
    print(*[await dispatch(UUID(workflow_id)) for workflow_id in workflow_ids])
    await cast("Any", get_repository()).close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
