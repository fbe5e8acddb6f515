"""Tables of the size that they have in production, filled by the server itself."""

from __future__ import annotations

from typing import Any

import psycopg

WORKFLOWS = 50

# The youngest first. A payload is about a kilobyte, as Orcheo's are.
_RUNS = """
INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at, updated_at)
SELECT gen_random_uuid()::text, 'workflow-' || n %% {workflows}, 'version',
       CASE WHEN n <= %(pending)s THEN 'pending' WHEN n <= %(pending)s + %(running)s THEN 'running'
            WHEN n %% 50 = 0 THEN 'failed' ELSE 'succeeded' END,
       CASE WHEN n %% 20 = 0 THEN 'chatkit' ELSE 'webhook' END, jsonb_build_object('filler', repeat('x', %(bytes)s)),
       now() - make_interval(secs => n * %(seconds)s::float8 / %(runs)s), now()
  FROM generate_series(1, %(runs)s) AS n
"""
_LEDGER = """
INSERT INTO orcheo_dispatch.dispatch
       (run_id, workflow_id, workspace_id, triggered_by, state, outcome, fence, attempts, slot, created_at, claimed_at,
        published_at, begun_at, heartbeat_at, lease_expires_at, settled_at, dispatcher_id, worker_id, reason)
SELECT r.id, r.workflow_id, 'a1f8f6de-4f0c-4a51-93a4-5a1b6a0f7d01', r.triggered_by,
       CASE r.status WHEN 'running' THEN 'running' ELSE 'settled' END,
       CASE WHEN r.status = 'running' THEN NULL WHEN r.status = 'failed' AND random() < 0.2 THEN 'lost'
            ELSE r.status END,
       1, 1, 'returned', r.created_at, r.created_at + interval '10 ms', r.created_at + interval '12 ms',
       r.created_at + interval '15 ms', r.created_at + interval '15 ms',
       CASE r.status WHEN 'running'
                     THEN now() + make_interval(secs => 30 - 7 * row_number() OVER (PARTITION BY r.status) % 36) END,
       CASE r.status WHEN 'running' THEN NULL ELSE r.created_at + make_interval(secs => random() * 3) END,
       gen_random_uuid(), gen_random_uuid(),
       CASE r.status WHEN 'failed'
                     THEN (ARRAY['ValueError', 'TimeoutError', 'worker_lost'])[1 + floor(random() * 3)::int] END
  FROM workflow_runs AS r
 WHERE r.status <> 'pending' AND r.triggered_by = 'webhook'
"""
_CLAIMS = """
INSERT INTO orcheo_dispatch.dispatch
       (run_id, workflow_id, triggered_by, state, fence, slot, created_at, claimed_at, lease_expires_at, dispatcher_id)
SELECT id, workflow_id, triggered_by, 'published', 1, 'held', created_at, now(), now() + interval '1 minute',
       gen_random_uuid()
  FROM workflow_runs WHERE status = 'pending' AND triggered_by = 'webhook' ORDER BY created_at LIMIT 200
"""
_PROCESSES = """
INSERT INTO orcheo_dispatch.process (id, kind, host, pid, version, concurrency, running, triggers, seen_at)
SELECT gen_random_uuid(), kind, 'host', n, '0.1.0', 32, 8,
       CASE kind WHEN 'dispatcher' THEN '{webhook,cron}'::text[] END,
       now() - make_interval(secs => CASE WHEN n = 1 THEN 3600 ELSE 1 END)
  FROM generate_series(1, 8) AS n, (VALUES ('dispatcher'), ('worker')) AS k(kind)
"""


def fill(
    connection: psycopg.Connection[Any], runs: int, *, pending: int, running: int, days: float, payload: int = 1000
) -> None:
    """Fill both tables with `runs` runs that were created over so many days, and bring the statistics up to date."""
    parameters = {
        "runs": runs,
        "pending": pending,
        "running": running,
        "seconds": days * 86_400,
        "bytes": payload,
    }
    connection.execute(_RUNS.format(workflows=WORKFLOWS), parameters)
    connection.execute(_LEDGER)
    connection.execute(_CLAIMS)
    connection.execute(_PROCESSES)
    # As autovacuum leaves them. workflow_runs too: what is counted by an index alone needs its visibility map.
    for table in ("workflow_runs", "orcheo_dispatch.dispatch", "orcheo_dispatch.process"):
        connection.execute(f"VACUUM (ANALYZE) {table}")
