"""What came to Orcheo with a release newer than the oldest supported one, and what the tests do without it.

Each has its row in docs/compatibility.md.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

from packaging.version import Version


@dataclass(frozen=True, slots=True)
class Feature:
    """What Orcheo itself has since a release, whatever executes its runs."""

    name: str
    since: str
    """The first release of `orcheo` that has it."""

    def is_in(self, version: str) -> bool:
        """Tell whether this release of `orcheo` has it."""
        return Version(version) >= Version(self.since)

    @property
    def is_here(self) -> bool:
        """Whether the installed release has it."""
        return self.is_in(importlib.metadata.version("orcheo"))


DISPATCHED_CONFIG = Feature("runnable configs in manual dispatches", "0.45.8")
"""Before it the API answers 422 to them."""
CRON_START_AT = Feature("cron triggers with `start_at`", "0.45.7")
"""Before it the API answers 500 to them."""
NO_EGRESS = Feature("refused requests to private addresses in restricted mode", "0.44.4")
"""Before it workflows in restricted mode may call any address."""

FEATURES = (DISPATCHED_CONFIG, CRON_START_AT, NO_EGRESS)
