"""The model counts the claims of a run; the database has a number for each that is above all that ever were."""

from __future__ import annotations

from collections.abc import Iterable

from orcheo_dispatch.shared.ledger.model import Claim

_NO_CLAIM = 1
"""The fence of a row that was entered without a claim, so that a slot comes back."""


class Fences:
    """Tells which claim of its run a fence is of: the first, the second, ..."""

    def __init__(self) -> None:
        self._of_runs: dict[str, list[int]] = {}

    def counted(self, claims: Iterable[Claim]) -> list[Claim]:
        """Return claims of the database as the model has them, in order."""
        return sorted(Claim(claim.run_id, self.number(claim.run_id, claim.fence)) for claim in claims)

    def real(self, claims: Iterable[Claim]) -> list[Claim]:
        """Return claims of the model as the database has them."""
        return [Claim(claim.run_id, self._of_runs[claim.run_id][claim.fence - 1]) for claim in claims]

    def number(self, run_id: str, fence: int, *, without_claim: int = 0) -> int:
        """Return which claim of the run this fence is of; a new one must be above all before it."""
        if fence == _NO_CLAIM:
            return without_claim
        known = self._of_runs.setdefault(run_id, [])
        if fence not in known:
            assert all(earlier < fence for earlier in known), f"fence {fence} of {run_id} after {known}"
            known.append(fence)
        return known.index(fence) + 1
