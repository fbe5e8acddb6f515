"""Every statement that moves a run or its ledger row: each can be pasted into psql with its :names filled in.

A statement locks the run before its ledger row, always in that order, so that two of them never wait
for each other. Several rows go in as arrays. The states in predicates are literals: with a bound state
a generic plan could not use the partial indexes. Nothing here executes.

Orcheo's table is named without a schema: it is found by the search_path, as Orcheo itself finds it.
"""

from __future__ import annotations

from sqlalchemy import TextClause, text

# Take up to :room of the oldest pending runs, oldest first.
#
# SKIP LOCKED passes over rows that another dispatcher holds right now, but does not look again at a row
# that another one locked, entered into the ledger and let go, unchanged, since this statement's snapshot.
# For those the conflict clause decides: only a settled row is taken over. A taken-over row gets the next fence.
CLAIM = text("""
WITH candidates AS MATERIALIZED (
    SELECT r.id, r.workflow_id, r.workspace_id, r.triggered_by
      FROM workflow_runs AS r
     WHERE r.status = 'pending'
       AND (:every_trigger OR r.triggered_by = ANY (CAST(:triggers AS text[])))
       AND NOT EXISTS (SELECT FROM orcheo_dispatch.dispatch AS d
                        WHERE d.run_id = r.id AND d.state IN ('claimed', 'published', 'running'))
     ORDER BY r.created_at, r.id
     LIMIT :room
       FOR UPDATE OF r SKIP LOCKED
)
INSERT INTO orcheo_dispatch.dispatch AS d
       (run_id, workflow_id, workspace_id, triggered_by, state, fence, slot, claimed_at, lease_expires_at,
        dispatcher_id)
SELECT c.id, c.workflow_id, c.workspace_id, c.triggered_by, 'claimed', 1,
       CASE WHEN c.workspace_id IS NULL THEN 'none' ELSE 'held' END,
       now(), now() + make_interval(secs => :lease), CAST(:dispatcher_id AS uuid)
  FROM candidates AS c
    ON CONFLICT (run_id) DO UPDATE
   SET state = 'claimed', outcome = NULL, fence = d.fence + 1, claimed_at = now(), published_at = NULL,
       begun_at = NULL, heartbeat_at = NULL, lease_expires_at = EXCLUDED.lease_expires_at, settled_at = NULL,
       dispatcher_id = EXCLUDED.dispatcher_id, worker_id = NULL, reason = NULL
 WHERE d.state = 'settled'
RETURNING d.run_id, d.fence
""")

# How many claims wait to begin.
QUEUED = text("SELECT count(*) FROM orcheo_dispatch.dispatch WHERE state IN ('claimed', 'published')")

# Note that the messages are in Redis. A worker may have begun already: then only the time is noted, and not
# even that where it holds the row at this moment. So no two batches of rows can ever wait for each other.
MARK_PUBLISHED = text("""
WITH sent AS MATERIALIZED (
    SELECT d.run_id
      FROM orcheo_dispatch.dispatch AS d
      JOIN unnest(CAST(:run_ids AS text[]), CAST(:fences AS bigint[])) AS m(run_id, fence)
        ON m.run_id = d.run_id AND m.fence = d.fence
     WHERE d.state IN ('claimed', 'running')
       FOR UPDATE OF d SKIP LOCKED
)
UPDATE orcheo_dispatch.dispatch AS d
   SET state = CASE WHEN d.state = 'claimed' THEN 'published' ELSE d.state END,
       published_at = now(),
       lease_expires_at = CASE WHEN d.state = 'claimed' THEN now() + make_interval(secs => :lease)
                               ELSE d.lease_expires_at END
  FROM sent AS s
 WHERE d.run_id = s.run_id
RETURNING d.run_id, d.fence
""")

# Give claims back that never began. Where the API has ended the run meanwhile, the row says so and the slot is due.
RELEASE = text("""
WITH released AS MATERIALIZED (
    SELECT r.id, r.status, m.fence
      FROM workflow_runs AS r
      JOIN unnest(CAST(:run_ids AS text[]), CAST(:fences AS bigint[])) AS m(run_id, fence) ON m.run_id = r.id
     ORDER BY r.id
       FOR UPDATE OF r
)
UPDATE orcheo_dispatch.dispatch AS d
   SET state = 'settled', settled_at = now(), lease_expires_at = NULL, reason = :reason,
       outcome = CASE v.status WHEN 'pending' THEN 'released' WHEN 'cancelled' THEN 'cancelled' ELSE 'skipped' END,
       slot = CASE WHEN v.status IN ('cancelled', 'failed', 'succeeded') AND d.slot = 'held' THEN 'due' ELSE d.slot END
  FROM released AS v
 WHERE d.run_id = v.id AND d.fence = v.fence AND d.state IN ('claimed', 'published')
RETURNING d.run_id, d.fence, d.outcome
""")

# Begin a run: ledger row and run move together. A message with another fence, or one that has been
# answered before, finds no row. A run that is not pending any more is settled as what the API made of it.
BEGIN = text("""
WITH locked_run AS MATERIALIZED (
    SELECT r.id, r.status FROM workflow_runs AS r WHERE r.id = :run_id FOR UPDATE
), answered AS (
    UPDATE orcheo_dispatch.dispatch AS d
       SET state = CASE WHEN l.status = 'pending' THEN 'running' ELSE 'settled' END,
           outcome = CASE WHEN l.status = 'pending' THEN NULL
                          WHEN l.status = 'cancelled' THEN 'cancelled' ELSE 'skipped' END,
           settled_at = CASE WHEN l.status = 'pending' THEN NULL ELSE now() END,
           reason = CASE WHEN l.status = 'pending' THEN NULL ELSE 'run is ' || COALESCE(l.status, 'gone') END,
           slot = CASE WHEN COALESCE(l.status, 'cancelled') IN ('cancelled', 'failed', 'succeeded') AND d.slot = 'held'
                       THEN 'due' ELSE d.slot END,
           begun_at = CASE WHEN l.status = 'pending' THEN now() END,
           heartbeat_at = CASE WHEN l.status = 'pending' THEN now() END,
           lease_expires_at = CASE WHEN l.status = 'pending' THEN now() + make_interval(secs => :lease) END,
           attempts = d.attempts + CASE WHEN l.status = 'pending' THEN 1 ELSE 0 END,
           worker_id = CAST(:worker_id AS uuid)
      FROM (SELECT 1) AS always LEFT JOIN locked_run AS l ON true
     WHERE d.run_id = :run_id AND d.fence = :fence AND d.state IN ('claimed', 'published')
    RETURNING d.run_id, d.state, d.reason, d.attempts, d.slot, d.workspace_id
), begun AS (
    UPDATE workflow_runs AS r
       SET status = 'running', updated_at = now(),
           payload = orcheo_dispatch.moved(r.payload, 'running', 'run_started', :actor, '{}',
                                           jsonb_build_object('started_at', orcheo_dispatch.iso(now())))
      FROM answered AS a
     WHERE r.id = a.run_id AND a.state = 'running' AND r.status = 'pending'
    RETURNING r.id, r.workflow_id, r.workflow_version_id, r.triggered_by,
              r.payload -> 'input_payload' AS inputs, r.payload -> 'runnable_config' AS runnable_config
)
SELECT a.state, a.reason, a.attempts, a.slot, a.workspace_id,
       b.workflow_id, b.workflow_version_id, b.triggered_by, b.inputs, b.runnable_config
  FROM answered AS a LEFT JOIN begun AS b ON b.id = a.run_id
""")

# End a run under its fence. Where the API has ended it meanwhile, its word stands and only the ledger is settled.
# :status 'pending' hands the run back for another attempt.
SETTLE = text("""
WITH locked_run AS MATERIALIZED (
    SELECT r.id, r.status FROM workflow_runs AS r WHERE r.id = :run_id FOR UPDATE
), settled AS (
    UPDATE orcheo_dispatch.dispatch AS d
       SET state = 'settled', settled_at = now(), lease_expires_at = NULL, reason = :reason,
           outcome = CASE WHEN l.status = 'running' THEN :outcome
                          WHEN l.status = 'cancelled' THEN 'cancelled' ELSE 'skipped' END,
           slot = CASE WHEN d.slot = 'held' AND COALESCE(l.status, 'cancelled') <> 'pending'
                        AND NOT (l.status = 'running' AND :status = 'pending') THEN 'due' ELSE d.slot END
      FROM (SELECT 1) AS always LEFT JOIN locked_run AS l ON true
     WHERE d.run_id = :run_id AND d.fence = :fence AND d.state = 'running'
    RETURNING d.run_id, d.outcome, d.slot, d.workspace_id
), ended AS (
    UPDATE workflow_runs AS r
       SET status = :status, updated_at = now(),
           payload = orcheo_dispatch.moved(r.payload, :status, :action, :actor, CAST(:metadata AS jsonb),
               CAST(:changes AS jsonb) || CASE WHEN :status = 'pending'
                   THEN jsonb_build_object('started_at', NULL)
                   ELSE jsonb_build_object('completed_at', orcheo_dispatch.iso(now())) END)
      FROM settled AS s
     WHERE r.id = s.run_id AND r.status = 'running'
    RETURNING r.id
)
SELECT s.outcome, s.slot, s.workspace_id, e.id IS NOT NULL AS ended
  FROM settled AS s LEFT JOIN ended AS e ON e.id = s.run_id
""")

# Extend the leases of the runs that this worker executes, in one statement, and learn what the API made of them.
# A run that is not returned is not this worker's any more.
HEARTBEAT = text("""
UPDATE orcheo_dispatch.dispatch AS d
   SET heartbeat_at = now(), lease_expires_at = now() + make_interval(secs => :lease)
  FROM unnest(CAST(:run_ids AS text[]), CAST(:fences AS bigint[])) AS h(run_id, fence)
  LEFT JOIN workflow_runs AS r ON r.id = h.run_id
 WHERE d.run_id = h.run_id AND d.fence = h.fence AND d.state = 'running'
RETURNING d.run_id, d.fence, r.status
""")

# End, or hand back, the runs whose worker has not been heard of for a lease. FOR UPDATE with SKIP LOCKED on both:
# a worker that beats or settles at this moment is alive. For a lease after a start of Postgres nobody is called
# lost: nobody could beat. Under 'hold' only the rows of runs that the API has ended are settled.
REAP = text("""
WITH lost AS MATERIALIZED (
    SELECT d.run_id, d.fence, r.status,
           CASE WHEN r.status <> 'running' THEN 'keep'
                WHEN :policy = 'requeue' AND d.attempts < :max_attempts THEN 'requeue' ELSE 'fail' END AS verdict,
           'Worker lost: no heartbeat since ' || orcheo_dispatch.iso(d.heartbeat_at)
               || CASE WHEN :policy = 'requeue' THEN ', attempt ' || d.attempts || ' of ' || :max_attempts
                       ELSE '' END AS error
      FROM orcheo_dispatch.dispatch AS d
      JOIN workflow_runs AS r ON r.id = d.run_id
     WHERE d.state = 'running' AND d.lease_expires_at < now()
       AND pg_postmaster_start_time() < now() - make_interval(secs => :lease)
       AND (:policy <> 'hold' OR r.status <> 'running')
     ORDER BY d.lease_expires_at
     LIMIT :batch
       FOR UPDATE OF r, d SKIP LOCKED
), settled AS (
    UPDATE orcheo_dispatch.dispatch AS d
       SET state = 'settled', settled_at = now(), lease_expires_at = NULL, reason = 'worker_lost',
           outcome = CASE WHEN l.verdict = 'requeue' THEN 'requeued' WHEN l.verdict = 'fail' THEN 'lost'
                          WHEN l.status = 'cancelled' THEN 'cancelled' ELSE 'skipped' END,
           slot = CASE WHEN d.slot = 'held' AND l.verdict <> 'requeue' AND l.status <> 'pending' THEN 'due'
                       ELSE d.slot END
      FROM lost AS l
     WHERE d.run_id = l.run_id AND d.fence = l.fence AND d.state = 'running'
    RETURNING d.run_id, d.fence, d.outcome, d.worker_id, d.workflow_id, l.verdict, l.error
), ended AS (
    UPDATE workflow_runs AS r
       SET status = CASE WHEN s.verdict = 'requeue' THEN 'pending' ELSE 'failed' END, updated_at = now(),
           payload = CASE WHEN s.verdict = 'requeue'
               THEN orcheo_dispatch.moved(r.payload, 'pending', 'run_requeued', :actor,
                   jsonb_build_object('reason', s.error), jsonb_build_object('started_at', NULL))
               ELSE orcheo_dispatch.moved(r.payload, 'failed', 'run_failed', :actor,
                   jsonb_build_object('error', s.error),
                   jsonb_build_object('error', s.error, 'completed_at', orcheo_dispatch.iso(now()))) END
      FROM settled AS s
     WHERE r.id = s.run_id AND r.status = 'running' AND s.verdict IN ('fail', 'requeue')
)
SELECT s.run_id, s.fence, s.outcome, s.worker_id, s.workflow_id FROM settled AS s
""")

# Settle the rows of runs that are gone from the API's table.
REAP_ORPHANS = text("""
UPDATE orcheo_dispatch.dispatch AS d
   SET state = 'settled', settled_at = now(), lease_expires_at = NULL, outcome = 'skipped', reason = 'run is gone',
       slot = CASE WHEN d.slot = 'held' THEN 'due' ELSE d.slot END
 WHERE d.state IN ('claimed', 'published', 'running') AND d.lease_expires_at < now()
   AND NOT EXISTS (SELECT FROM workflow_runs AS r WHERE r.id = d.run_id)
RETURNING d.run_id, d.fence
""")

# Claims that nobody has answered for a lease: their messages wait in Redis, or are lost.
LAPSED = text("""
SELECT d.run_id, d.fence, d.reason FROM orcheo_dispatch.dispatch AS d
 WHERE d.state IN ('claimed', 'published') AND d.lease_expires_at < now()
 ORDER BY d.lease_expires_at
 LIMIT :batch
""")

# Extend the leases of claims whose messages Redis still holds: a long queue is not a lost message.
EXTEND = text("""
UPDATE orcheo_dispatch.dispatch AS d
   SET lease_expires_at = now() + make_interval(secs => :lease), state = 'published', reason = :reason,
       published_at = COALESCE(d.published_at, d.claimed_at)
  FROM unnest(CAST(:run_ids AS text[]), CAST(:fences AS bigint[])) AS m(run_id, fence)
 WHERE d.run_id = m.run_id AND d.fence = m.fence AND d.state IN ('claimed', 'published')
RETURNING d.run_id, d.fence
""")

# Runs that the API cancelled before anybody claimed them. It took a slot for each, and gives none back.
ADOPT_CANCELLED = text("""
INSERT INTO orcheo_dispatch.dispatch
       (run_id, workflow_id, workspace_id, triggered_by, state, outcome, fence, slot, claimed_at, settled_at,
        dispatcher_id, reason)
SELECT r.id, r.workflow_id, r.workspace_id, r.triggered_by, 'settled', 'cancelled', 1, 'due', now(), now(),
       CAST(:dispatcher_id AS uuid), 'never claimed'
  FROM workflow_runs AS r
 WHERE r.status = 'cancelled' AND r.workspace_id IS NOT NULL
   AND r.updated_at > now() - make_interval(secs => :younger_than)
   AND r.payload ->> 'started_at' IS NULL
   AND (:every_trigger OR r.triggered_by = ANY (CAST(:triggers AS text[])))
   AND NOT EXISTS (SELECT FROM orcheo_dispatch.dispatch AS d WHERE d.run_id = r.id)
 LIMIT :batch
    ON CONFLICT (run_id) DO NOTHING
RETURNING run_id
""")

# Run slots of ended runs that nobody has given back for a while: their worker died in between.
SLOTS_DUE = text("""
SELECT d.run_id, d.workspace_id FROM orcheo_dispatch.dispatch AS d
 WHERE d.slot = 'due' AND d.settled_at < now() - make_interval(secs => :older_than)
 ORDER BY d.settled_at
 LIMIT :batch
""")

SLOTS_RETURNED = text("""
UPDATE orcheo_dispatch.dispatch SET slot = 'returned'
 WHERE run_id = ANY (CAST(:run_ids AS text[])) AND slot = 'due'
""")

# Rows that stand for a pending run keep its fence, and rows that owe a slot keep the debt.
PRUNE = text("""
WITH old AS (
    SELECT d.run_id FROM orcheo_dispatch.dispatch AS d
     WHERE d.state = 'settled' AND d.settled_at < now() - make_interval(secs => :retention) AND d.slot <> 'due'
       AND NOT EXISTS (SELECT FROM workflow_runs AS r WHERE r.id = d.run_id AND r.status IN ('pending', 'running'))
     ORDER BY d.settled_at
     LIMIT :batch
       FOR UPDATE OF d SKIP LOCKED
)
DELETE FROM orcheo_dispatch.dispatch AS d USING old WHERE d.run_id = old.run_id
RETURNING d.run_id
""")

# A process says that it is alive.
SEEN = text("""
INSERT INTO orcheo_dispatch.process AS p (id, kind, host, pid, version, concurrency, running)
VALUES (CAST(:id AS uuid), :kind, :host, :pid, :version, :concurrency, :running)
    ON CONFLICT (id) DO UPDATE SET seen_at = now(), running = EXCLUDED.running
""")

GONE = text("DELETE FROM orcheo_dispatch.process WHERE id = CAST(:id AS uuid)")

PRUNE_PROCESSES = text("""
DELETE FROM orcheo_dispatch.process WHERE seen_at < now() - make_interval(secs => :retention)
""")


def as_text(statement: TextClause) -> str:
    """Return a statement's SQL, as it can be pasted into psql."""
    return statement.text.strip()
