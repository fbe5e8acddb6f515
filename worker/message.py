"""What a message may say: `(run_id, fence)`, and nothing else is listened to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.ledger import Claim
from shared.logs import log


class RunMessage(BaseModel):
    """The body of a message."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    run_id: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
    fence: Annotated[int, Field(gt=0, lt=2**63)]


def read_claim(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Claim | None:
    """Return the claim that a message carries; one warning, without its content, where it carries none."""
    try:
        if kwargs or len(args) != 2:
            raise ValueError("not two arguments")
        message = RunMessage(run_id=args[0], fence=args[1])
    except (ValidationError, ValueError) as error:
        log.warning("malformed_message", error=type(error).__name__)
        return None
    return Claim(message.run_id, message.fence)
