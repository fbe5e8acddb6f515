"""The rules of the protocol that the model can be asked to drop, one at a time."""

from __future__ import annotations

from enum import StrEnum


class Rule(StrEnum):
    """A condition of one statement, in words. Each is needed: without it the explorer finds a counterexample."""

    CLAIM_IS_FREE = "a claim takes no run that another claim holds"
    CLAIM_RAISES_FENCE = "a claim raises the fence"
    FENCE_FROM_CLOCK = "a fence is higher than all earlier ones, also after pruning or a restore"
    MARK_IS_CLAIMED = "only a claim that has not begun is marked as published"
    BEGIN_FENCE = "a begin compares the fence"
    BEGIN_STATE = "a begin needs a claim that has not begun"
    BEGIN_STATUS = "a begin needs a pending run"
    CHECKPOINT_HOLDER = "a checkpoint needs a running claim, its fence and its worker"
    RESUME_READS = "a begin continues after the last stored step"
    SETTLE_FENCE = "a settle compares the fence"
    SETTLE_WORKER = "a settle compares the worker"
    SETTLE_STATE = "a settle needs a running claim"
    SETTLE_STATUS = "a settle changes only a running run"
    REAP_LEASE = "only a run whose lease has expired is reaped"
    REAPED = "runs whose lease has expired are reaped"
    RECONCILED = "claims whose message was lost are released"
    RELEASE_FENCE = "a release compares the fence"
    RELEASE_STATE = "a release needs a claim that has not begun"
    SLOT_ONCE = "a slot that was returned is not returned again"
    ADOPTED = "slots of runs that were cancelled before a claim are returned"
    REQUEUE_ALIVE = "an operator requeues no run whose worker is alive"
