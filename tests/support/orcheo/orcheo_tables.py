"""Make the tables that Orcheo's API and stock worker make; run as a script in their environment."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback

from orcheo.config import get_settings
from orcheo.persistence import create_checkpointer, create_graph_store
from orcheo_backend.app.dependencies import get_history_store, get_repository, get_vault
from orcheo_backend.app.workspace.dependencies import get_workspace_service


async def make_tables() -> None:
    """Make each store do what it does at its first use, and create the one workspace."""
    get_workspace_service().create_workspace(slug="default", name="Default", owner_user_id="anonymous")
    get_vault().list_credentials()
    await get_repository().list_workflows()
    await get_history_store().list_histories("none")
    async with create_checkpointer(get_settings()), create_graph_store(get_settings()):
        pass


def main() -> None:
    """Make the tables and leave at once, with 1 after a failure.

    Orcheo never closes its pools. `asyncio.run` would cancel their tasks, and waits for ever for one that was
    just connecting.
    """
    code = 1
    try:
        asyncio.new_event_loop().run_until_complete(make_tables())
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
