"""The environment for Orcheo's own processes in the demo and in tests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

# Orcheo takes 32 characters; no vault of a demo or a test holds anything worth a real key.
VAULT_KEY = "not-a-secret-just-32-characters!"
_FOREIGN_PREFIXES = ("ORCHEO_", "CELERY_", "LANGCHAIN_", "LANGSMITH_")


def orcheo_environment(dsn: str, redis_url: str, home: Path) -> dict[str, str]:
    """Return Orcheo's variables for this database, this Redis and a scratch folder as `HOME`.

    Authentication is off, uploads are allowed, rate limits are out of the way, and the API executes nothing
    itself: neither runs nor cron triggers.
    """
    return {
        "ORCHEO_POSTGRES_DSN": dsn,
        # The API's Celery app reads one, its run slots the other.
        "REDIS_URL": redis_url,
        "ORCHEO_REDIS_URL": redis_url,
        "ORCHEO_AUTH_MODE": "disabled",
        "ORCHEO_VAULT_ENCRYPTION_KEY": VAULT_KEY,
        "ORCHEO_REPOSITORY_BACKEND": "postgres",
        "ORCHEO_CHECKPOINT_BACKEND": "postgres",
        "ORCHEO_GRAPH_STORE_BACKEND": "postgres",
        "ORCHEO_CHATKIT_BACKEND": "postgres",
        "ORCHEO_WORKFLOW_TRUST_MODE": "allow_client_uploads",
        "ORCHEO_MULTI_WORKSPACE_RATE_LIMIT": "1000000",
        "ORCHEO_INPROCESS_EXECUTION": "false",
        "ORCHEO_INPROCESS_CRON": "false",
        "HOME": str(home),
    }


def process_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment for a child, with `variables` in place of any settings of Orcheo's in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN_PREFIXES)}
    return {**kept, **variables}
