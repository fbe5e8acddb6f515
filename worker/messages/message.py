"""Parse a message: `run_id, fence, run_id, fence, ...`, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import batched
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orcheo_dispatch.shared.ledger.model import MAX_CLAIMS_PER_MESSAGE, Claim
from orcheo_dispatch.shared.logs.lines import log


class ClaimInMessage(BaseModel):
    """One claim of a message's body."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    run_id: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
    fence: Annotated[int, Field(gt=0, lt=2**63)]


def read_claims(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Claim]:
    """Return the claims that a message carries; if it carries none, log one warning, without its content.

    A message with any malformed part is refused as a whole: no process of ours has sent it.
    """
    try:
        if kwargs or not args or len(args) % 2 or len(args) > 2 * MAX_CLAIMS_PER_MESSAGE:
            raise ValueError("not pairs of a run and a fence")
        read = [ClaimInMessage(run_id=run_id, fence=fence) for run_id, fence in batched(args, 2)]
    except (ValidationError, ValueError) as error:
        log.warning("malformed_message", error=type(error).__name__)
        return []
    return list(dict.fromkeys(Claim(claim.run_id, claim.fence) for claim in read))
