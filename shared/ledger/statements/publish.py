"""Statements for claims that have not begun: mark them as published, find lapsed ones, extend and release them."""

from sqlalchemy import text

# Record that the messages of claims are in Redis. A run that has begun is not written again. Neither is the lease: a
# message may have been lost since. A row that another session has locked stays as it is, so no two batches of rows can
# ever wait for each other.
MARK_PUBLISHED = text("""
WITH waiting AS MATERIALIZED (
    SELECT d.run_id
      FROM orcheo_dispatch.dispatch AS d
      JOIN unnest(CAST(:run_ids AS text[]), CAST(:fences AS bigint[])) AS m(run_id, fence)
        ON m.run_id = d.run_id AND m.fence = d.fence
     WHERE d.state || '' = 'claimed'
       FOR UPDATE OF d SKIP LOCKED
)
UPDATE orcheo_dispatch.dispatch AS d
   SET state = 'published', published_at = d.claimed_at
  FROM waiting AS w
 WHERE d.run_id = w.run_id
RETURNING d.run_id, d.fence
""")

# Claims whose leases expired before a worker answered: their messages wait in Redis, or are lost.
LAPSED = text("""
SELECT d.run_id, d.fence, d.reason, d.queue
  FROM orcheo_dispatch.dispatch AS d
 WHERE d.state IN ('claimed', 'published') AND d.lease_expires_at < now()
   AND NOT d.run_id IN (SELECT unnest(CAST(:skipped AS text[])))
 ORDER BY d.lease_expires_at
 LIMIT :batch
""")

# Extend the leases of claims whose messages are still in Redis: a long queue is not a lost message. A row that another
# session has locked stays lapsed, and the next poll tries it again.
EXTEND = text("""
WITH held AS MATERIALIZED (
    SELECT d.run_id, d.fence FROM orcheo_dispatch.dispatch AS d
      JOIN unnest(CAST(:run_ids AS text[]), CAST(:fences AS bigint[])) AS m(run_id, fence)
        ON m.run_id = d.run_id AND m.fence = d.fence
     WHERE d.state || '' IN ('claimed', 'published')
     ORDER BY d.run_id FOR UPDATE OF d SKIP LOCKED
)
UPDATE orcheo_dispatch.dispatch AS d
   SET lease_expires_at = now() + make_interval(secs => :lease), state = 'published', reason = :reason,
       published_at = COALESCE(d.published_at, d.claimed_at)
  FROM held AS h
 WHERE d.run_id = h.run_id AND d.fence = h.fence AND d.state || '' IN ('claimed', 'published')
RETURNING d.run_id, d.fence
""")

# Release claims whose runs never began. If the API has ended the run meanwhile, the row says so and the slot is due.
# Runs and rows that another session has locked are skipped: such a claim is released after its lease has expired.
RELEASE = text("""
WITH released AS MATERIALIZED (
    SELECT r.id, r.status, m.fence,
           -- Another worker that executed it, such as Orcheo's own, has returned its slot.
           r.status || '' IN ('succeeded', 'failed')
               AND r.payload @? '$.audit_log[*] ? (@.action == "run_started" && @.actor == "worker")'
               AS executed
      FROM workflow_runs AS r
      JOIN unnest(CAST(:run_ids AS text[]), CAST(:fences AS bigint[])) AS m(run_id, fence) ON m.run_id = r.id
     ORDER BY r.id
       FOR UPDATE OF r SKIP LOCKED
), held AS MATERIALIZED (
    SELECT d.run_id, d.fence, v.status, v.executed
      FROM released AS v
     CROSS JOIN LATERAL (
        SELECT l.run_id, l.fence FROM orcheo_dispatch.dispatch AS l
         WHERE l.run_id = v.id AND l.fence = v.fence AND l.state || '' IN ('claimed', 'published')
           FOR UPDATE SKIP LOCKED) AS d
)
UPDATE orcheo_dispatch.dispatch AS d
   SET state = 'settled', settled_at = now(), lease_expires_at = NULL, reason = :reason,
       outcome = CASE v.status WHEN 'pending' THEN 'released' WHEN 'cancelled' THEN 'cancelled' ELSE 'skipped' END,
       slot = CASE WHEN d.slot <> 'held' THEN d.slot
                   WHEN v.executed AND d.attempts = 0 THEN 'returned'
                   WHEN v.status IN ('cancelled', 'failed', 'succeeded') THEN 'due'
                   ELSE d.slot END
  FROM held AS v
 WHERE d.run_id = v.run_id AND d.fence = v.fence AND d.state || '' IN ('claimed', 'published')
RETURNING d.run_id, d.fence, d.outcome
""")
