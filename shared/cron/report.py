"""Result of one dispatch of due cron triggers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

WorkerCronOutcome = Literal["succeeded", "busy", "database_away", "failed"]
"""busy: another process is dispatching at this moment."""
ApiCronOutcome = Literal[
    "succeeded",
    "unreachable",
    "unauthorized",
    "forbidden",
    "rate_limited",
    "server_error",
    "refused",
    "redirected",
    "malformed",
    "failed",
]
CronOutcome = WorkerCronOutcome | ApiCronOutcome
SkipReason = Literal["quota", "credentials", "locked", "failed"]
SKIP_REASONS: tuple[str, ...] = get_args(SkipReason)


@dataclass(frozen=True, slots=True)
class CronReport:
    """Result of one dispatch."""

    outcome: CronOutcome
    runs: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Number of due triggers whose run was not created, by `SkipReason`. They stay due."""
    reason: str = ""
    """Why the dispatch failed: one line without a secret."""
