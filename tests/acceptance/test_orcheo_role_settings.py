"""The real Orcheo executes runs whatever its role's sessions begin with."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from functools import partial
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from orcheo.config import get_settings
from orcheo_backend.app import dependencies
from orcheo_backend.app.dependencies import get_vault
from psycopg import sql

from tests.support.database.databases import Database
from tests.support.database.runs import everything
from tests.support.database.session_settings import ALL_AT_ONCE, SINCE, WORKS, give
from tests.support.orcheo.executions import WORKSPACE, history, new_run, play
from tests.support.runners.local_outside import LocalExecutor

_SETTINGS = {
    **{
        name: WORKS[name]
        for name in (
            "DateStyle German",
            "DateStyle SQL",
            "TimeZone POSIX",
            "bytea_output",
            "client_encoding",
            "serializable",
            "repeatable read",
            "lock_timeout",
            "standard_conforming_strings",
        )
    },
    "statement_timeout": {"statement_timeout": "20ms"},
    "idle_session_timeout": {"idle_session_timeout": "1s"},
    "all at once": ALL_AT_ONCE,
}


@pytest.fixture
def role(orcheo_here: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The DSN of a role that has the owner's rights, and that Orcheo connects as from here on."""
    name, password = f"test_orcheo_{secrets.token_hex(4)}", secrets.token_hex(8)
    with psycopg.connect(orcheo_here.dsn, autocommit=True) as owner:
        owner.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE {}").format(
                sql.Identifier(name), sql.Literal(password), sql.Identifier(owner.info.user)
            )
        )
        parts = urlsplit(orcheo_here.dsn)
        address = parts.netloc.rpartition("@")[2]
        dsn = urlunsplit(parts._replace(netloc=f"{name}:{password}@{address}"))
        monkeypatch.setenv("ORCHEO_POSTGRES_DSN", dsn)
        get_settings(refresh=True)
        yield dsn
        owner.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
        owner.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.mark.parametrize("name", _SETTINGS)
def test_run_does_not_depend_on_what_sessions_begin_with(orcheo_here: Database, role: str, name: str) -> None:
    assert name not in SINCE
    secret = partial(get_vault().create_credential, name="door_key", provider="door", scopes=[], actor="test")
    secret(secret="swordfish", workspace_id=WORKSPACE)
    give(orcheo_here, [role], _SETTINGS[name])
    # Made anew, as in a worker: by the executor, on the role's connections.
    dependencies.set_vault(None)

    async def scenario(executor: LocalExecutor) -> None:
        greeting, unlocking = await new_run("greet", inputs={"body": {"name": "Ada"}}), await new_run("unlock")
        greeted, unlocked = await asyncio.gather(executor.execute(greeting), executor.execute(unlocking))
        assert greeted is not None
        assert greeted["final_state"]["node_results"] == {"start": {"greeting": "hello Ada"}}
        assert unlocked is not None
        assert unlocked["final_state"]["node_results"] == {"start": {"length": 9, "resolved": True}}
        record, steps = history(orcheo_here, greeting)
        assert record["status"] == "completed"
        assert record["started_at"] <= record["completed_at"]
        assert len(steps) == 2
        assert everything(orcheo_here, "SELECT FROM checkpoints WHERE thread_id = %s", greeting.run_id)

    play(scenario)
