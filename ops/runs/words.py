"""The words that filters of `runs` take. Separate from the query, so that a completion at a tab imports no driver."""

from __future__ import annotations

from orcheo_dispatch.shared.ledger.model import Outcome

STATUSES = ("pending", "running", "succeeded", "failed", "cancelled")
OUTCOMES = tuple(outcome.value for outcome in Outcome)
