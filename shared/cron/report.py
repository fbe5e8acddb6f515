"""What one dispatch of due cron triggers did."""

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
    """What one dispatch did."""

    outcome: CronOutcome
    runs: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Due triggers whose run was not created, by `SkipReason`. They stay due."""
    reason: str = ""
    """Why it failed: one line without a secret."""
