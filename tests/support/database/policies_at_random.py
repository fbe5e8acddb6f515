"""Policies of operators, of any scopes and contents."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from sqlalchemy import Connection, text

type Scope = tuple[str, str]
"""A workspace and a workflow, one of them "" or both."""

ALL: Scope = ("", "")
SCOPES: tuple[Scope, ...] = (ALL, ("a", ""), ("b", ""), ("", "w1"), ("", "w2"))
AUTHOR = "ada"

_INSERT = text("""
INSERT INTO orcheo_dispatch.policy (workspace_id, workflow_id, maintenance, paused, paused_until, queue, max_running,
                                    rate_runs, rate_seconds, timeout_seconds, lost_runs, retries, isolation, why, by,
                                    at)
SELECT x.workspace, x.workflow, x.maintenance, x.paused, now() + make_interval(secs => x.paused_for), x.queue,
       x.max_running, x.rate_runs, CASE WHEN x.rate_runs IS NOT NULL THEN 60 END, x.timeout, x.lost_runs, x.retries,
       x.isolation, x.workspace || '/' || x.workflow, :by, now() - make_interval(secs => x.ago)
  FROM jsonb_to_recordset(CAST(:rows AS jsonb))
       AS x(workspace text, workflow text, maintenance boolean, paused boolean, paused_for float8, queue text,
            max_running integer, rate_runs integer, timeout integer, lost_runs text, retries text, isolation text,
            ago float8)
""")
_ENDED: tuple[dict[str, Any], ...] = ({}, {"paused": True, "paused_for": -5})
# A trigger would replace author and time.
_NO_TRIGGERS = text("SET LOCAL session_replication_role = replica")


@dataclass(frozen=True)
class Policy:
    """A policy. `paused_for` is in seconds, negative where the pause has ended; it was set `ago` seconds ago."""

    workspace: str
    workflow: str
    maintenance: bool | None = None
    paused: bool | None = None
    paused_for: int | None = None
    queue: str | None = None
    max_running: int | None = None
    rate_runs: int | None = None
    timeout: int | None = None
    lost_runs: str | None = None
    retries: str | None = None
    isolation: str | None = None
    ago: int = 1

    @property
    def why(self) -> str:
        """What its author said."""
        return f"{self.workspace}/{self.workflow}"

    @property
    def kind(self) -> str:
        """The kind of its scope."""
        return "workflow" if self.workflow else "workspace" if self.workspace else "all"

    @property
    def pauses(self) -> bool | None:
        """What it says of a pause now."""
        return None if self.paused_for is not None and self.paused_for <= 0 else self.paused

    @property
    def decides(self) -> bool:
        """Whether it decides anything now."""
        limits = (self.max_running, self.rate_runs, self.timeout)
        others = (self.maintenance, self.pauses, self.queue, self.lost_runs, self.retries, self.isolation)
        return any(each is not None for each in (*limits, *others))


def insert(connection: Connection, policies: Iterable[Policy]) -> None:
    """Insert policies, without the triggers of the table, which are off until the end of the transaction."""
    connection.execute(_NO_TRIGGERS)
    rows = json.dumps([asdict(each) for each in policies])
    connection.execute(_INSERT, {"rows": rows, "by": AUTHOR})


def decide(random: Random, connection: Connection) -> dict[Scope, Policy]:
    """Insert policies of some scopes, and return them."""

    def maybe[T](*values: T) -> T | None:
        return random.choice((None, *values))

    policies = {}
    for scope in random.sample(SCOPES, random.randint(0, len(SCOPES))):
        paused, ago = maybe(None, None, True, False), random.choice((1, 2, 3))
        if random.random() < 0.2:
            # One that decides nothing, or nothing any more.
            policies[scope] = Policy(*scope, ago=ago, **random.choice(_ENDED))
            continue
        policies[scope] = Policy(
            *scope,
            maintenance=maybe(None, False, None, True) if scope == ALL else None,
            paused=paused,
            paused_for=maybe(-5, 5) if paused else None,
            queue=maybe(None, "gpu", "default", "none"),
            max_running=maybe(1, 3, 1000),
            rate_runs=maybe(1, 5, 1000),
            timeout=maybe(7, 8),
            lost_runs=maybe("fail", "hold"),
            retries=maybe("step", "off"),
            isolation=maybe("process", "shared"),
            ago=ago,
        )
    insert(connection, policies.values())
    return policies
