"""Every statement that moves a run or its ledger row: each can be pasted into psql with its :names filled in.

A statement locks the run before its ledger row, always in that order, so that two of them never wait
for each other. Several rows go in as arrays. The states in predicates are literals: with a bound state
a generic plan could not use the partial indexes. Nothing here executes.

Orcheo's table is named without a schema: it is found by the search_path, as Orcheo itself finds it.
"""

from orcheo_dispatch.shared.ledger.statements.admit import ADMIT_LABELLED, ADMIT_PUSHED, LABELLED
from orcheo_dispatch.shared.ledger.statements.claim import (
    CLAIM,
    CLAIM_GIVEN,
    CLAIM_MORE,
    CLAIM_OLDEST_FIRST,
    CLAIMABLE,
    CLAIMABLE_OLDEST_FIRST,
    LIMITED_CLAIMS_LOCK,
    LOOK,
    QUEUED,
    WRITE_NOTHING,
)
from orcheo_dispatch.shared.ledger.statements.count import COUNT_ENDED, PRUNE_ENDED
from orcheo_dispatch.shared.ledger.statements.execute import (
    BEGIN,
    BEGUN,
    ENDED_BY_API,
    HEARTBEAT,
    KNOWN,
    REFUSE,
    SETTLE,
)
from orcheo_dispatch.shared.ledger.statements.isolate import (
    CLEAR_ISOLATION,
    FIND_VERSION,
    FIND_WORKFLOW,
    ISOLATE,
    ISOLATED,
    PRUNE_ISOLATION,
    RECORD_HARM,
)
from orcheo_dispatch.shared.ledger.statements.processes import GONE, PRUNE_PROCESSES, SEEN, TICKED_ELSEWHERE, WORKERS
from orcheo_dispatch.shared.ledger.statements.publish import EXTEND, LAPSED, MARK_PUBLISHED, RELEASE
from orcheo_dispatch.shared.ledger.statements.recover import (
    ADOPT_CANCELLED,
    CANCELLED,
    CLOSE_TRACES,
    LOST,
    OLD,
    ORPHANS,
    PRUNE,
    REAP,
    REAP_ORPHANS,
    REPAIR,
    SLOTS_DUE,
    SLOTS_RETURNED,
)

__all__ = [
    "ADMIT_LABELLED",
    "ADMIT_PUSHED",
    "ADOPT_CANCELLED",
    "BEGIN",
    "BEGUN",
    "CANCELLED",
    "CLAIM",
    "CLAIMABLE",
    "CLAIMABLE_OLDEST_FIRST",
    "CLAIM_GIVEN",
    "CLAIM_MORE",
    "CLAIM_OLDEST_FIRST",
    "CLEAR_ISOLATION",
    "CLOSE_TRACES",
    "COUNT_ENDED",
    "ENDED_BY_API",
    "EXTEND",
    "FIND_VERSION",
    "FIND_WORKFLOW",
    "GONE",
    "HEARTBEAT",
    "ISOLATE",
    "ISOLATED",
    "KNOWN",
    "LABELLED",
    "LAPSED",
    "LIMITED_CLAIMS_LOCK",
    "LOOK",
    "LOST",
    "MARK_PUBLISHED",
    "OLD",
    "ORPHANS",
    "PRUNE",
    "PRUNE_ENDED",
    "PRUNE_ISOLATION",
    "PRUNE_PROCESSES",
    "QUEUED",
    "WRITE_NOTHING",
    "REAP",
    "REAP_ORPHANS",
    "RECORD_HARM",
    "REFUSE",
    "REPAIR",
    "RELEASE",
    "SEEN",
    "SETTLE",
    "SLOTS_DUE",
    "SLOTS_RETURNED",
    "TICKED_ELSEWHERE",
    "WORKERS",
]
