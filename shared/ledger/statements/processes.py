"""Record and read which processes are alive."""

from sqlalchemy import text

# Record that a process is alive.
SEEN = text("""
INSERT INTO orcheo_dispatch.process AS p (id, kind, host, pid, version, concurrency, running, triggers, queues)
VALUES (CAST(:id AS uuid), :kind, :host, :pid, :version, :concurrency, :running,
        CAST(:triggers AS text[]), CAST(:queues AS text[]))
    ON CONFLICT (id) DO UPDATE SET seen_at = now(), running = EXCLUDED.running
""")

# How many workers are alive, and how many runs the smallest of them executes at a time.
WORKERS = text("""
SELECT count(*) AS alive, COALESCE(min(p.concurrency), 0) AS smallest, COALESCE(array_agg(p.id::text), '{}') AS ids
  FROM orcheo_dispatch.process AS p
 WHERE p.kind = 'worker' AND p.seen_at > now() - make_interval(secs => :lease)
""")

# The named queues that live workers consume.
CONSUMED = text("""
SELECT DISTINCT unnest(p.queues) AS queue
  FROM orcheo_dispatch.process AS p
 WHERE p.kind = 'worker' AND p.seen_at > now() - interval '30 seconds'
""")

# Whether Beat has ticked recently and another dispatcher is alive: each tick reaches only one dispatcher.
TICKED_ELSEWHERE = text("""
SELECT EXISTS (SELECT FROM orcheo_dispatch.process AS p
                WHERE p.kind = 'beat' AND p.seen_at > now() - make_interval(secs => :seconds))
   AND EXISTS (SELECT FROM orcheo_dispatch.process AS p
                WHERE p.kind = 'dispatcher' AND p.id <> CAST(:id AS uuid)
                  AND p.seen_at > now() - make_interval(secs => :seconds))
""")

GONE = text("DELETE FROM orcheo_dispatch.process WHERE id = CAST(:id AS uuid)")

PRUNE_PROCESSES = text("""
WITH old AS MATERIALIZED (
    SELECT p.id FROM orcheo_dispatch.process AS p
     WHERE p.seen_at < now() - make_interval(secs => :retention) FOR UPDATE SKIP LOCKED
)
DELETE FROM orcheo_dispatch.process AS p USING old AS o WHERE p.id = o.id
""")
