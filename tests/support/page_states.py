"""States of a system that the status page is looked at in: busy and broken. Empty is a database of its own.

Each run's payload holds MARKER, as input, output and error: it must be in no answer.
"""

from __future__ import annotations

import psycopg

from tests.support.database.databases import Database

MARKER = "hunter2-of-a-run"
HOSTILE = "<img src=x onerror=alert(1)>"
WORKFLOWS = ("Invoice intake", "Lead scoring", "Nightly digest", "Support triage", HOSTILE)
_BY = "(ARRAY['webhook', 'webhook', 'webhook', 'cron', 'api', 'cli', 'canvas'])[1 + floor(random() * 7)::int]"

_WORKFLOWS = """
INSERT INTO workflows (id, handle, payload, created_at, updated_at)
SELECT md5('workflow' || n)::uuid::text, 'handle-' || n,
       jsonb_build_object('name', name, 'description', %(marker)s::text), now(), now()
  FROM unnest(%(names)s::text[]) WITH ORDINALITY AS w(name, n)
"""

# A run each, in the API's table. `at` is when it was created; others take it from there.
_RUN = f"""
SELECT gen_random_uuid()::text AS id,
       md5('workflow' || 1 + floor(power(random(), 1.6) * 5)::int)::uuid::text AS workflow,
       {_BY} AS by, random() AS luck, random() AS pace, n
  FROM generate_series(1, %(count)s::int) AS n
"""
_MARKED = ", ".join(f"'{name}', %(marker)s::text" for name in ("input_payload", "output_payload", "error"))
_PAYLOAD = f"jsonb_build_object({_MARKED})"

_ENDED = f"""
WITH run AS MATERIALIZED ({_RUN}), timed AS MATERIALIZED (
    SELECT *, now() - interval '59 minutes' * (1 - power(n / %(count)s::float8, 0.8)) - interval '3 seconds' AS ended,
           interval '1 second' * (0.2 + 2.4 * pace * pace + CASE WHEN pace > 0.97 THEN 14 * random() ELSE 0 END
                                  + 0.9 * abs(sin(n / 60.0))) AS ran,
           interval '1 second' * (0.02 + 0.18 * random() + 1.4 * greatest(0, sin(n / 90.0)) * pace) AS wait,
           CASE WHEN luck < 0.03 THEN 'failed' WHEN luck < 0.035 THEN 'timed_out'
                WHEN luck < 0.045 THEN 'cancelled' ELSE 'succeeded' END AS outcome
      FROM run
), made AS (
    INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at,
                               updated_at)
    SELECT id, workflow, 'v', replace(outcome, 'timed_out', 'failed'), by, {_PAYLOAD}, ended - ran - wait, ended
      FROM timed
)
INSERT INTO orcheo_dispatch.dispatch (run_id, workflow_id, triggered_by, state, outcome, fence, attempts, slot,
                                      claimed_at, published_at, begun_at, settled_at, dispatcher_id, worker_id, reason)
SELECT id, workflow, by, 'settled', outcome, 1, 1, 'none', ended - ran - wait / 2, ended - ran - wait / 3, ended - ran,
       ended, gen_random_uuid(), gen_random_uuid(),
       CASE outcome WHEN 'failed' THEN (ARRAY['ValueError', 'TimeoutError', 'HTTPStatusError', 'x: ' || %(marker)s])
                                       [1 + floor(random() * 4)::int]
                    WHEN 'timed_out' THEN 'timed_out' WHEN 'cancelled' THEN 'cancelled' END
  FROM timed
"""

_PENDING = f"""
INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at, updated_at)
SELECT id, workflow, 'v', 'pending', by, {_PAYLOAD}, now() - %(age)s::interval * (0.1 + 0.9 * pace), now()
  FROM ({_RUN}) AS run
"""

# Live rows of the ledger: published ones and, with their leases over, stuck ones.
_LIVE = f"""
WITH run AS MATERIALIZED ({_RUN}), made AS (
    INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at,
                               updated_at)
    SELECT id, workflow, 'v', CASE %(state)s::text WHEN 'running' THEN 'running' ELSE 'pending' END, by, {_PAYLOAD},
           now() - %(age)s::interval * pace - interval '1 second', now()
      FROM run
)
INSERT INTO orcheo_dispatch.dispatch (run_id, workflow_id, triggered_by, state, fence, attempts, slot, claimed_at,
                                      published_at, begun_at, heartbeat_at, lease_expires_at, dispatcher_id, worker_id)
SELECT id, workflow, by, %(state)s, 1, CASE %(state)s::text WHEN 'running' THEN 1 ELSE 0 END, 'held',
       now() - %(age)s::interval * pace - interval '0.8 seconds', now() - %(age)s::interval * pace,
       CASE %(state)s::text WHEN 'running' THEN now() - %(age)s::interval * pace END, now() - %(silent)s::interval,
       now() - %(silent)s::interval + interval '30 seconds', gen_random_uuid(), gen_random_uuid()
  FROM run
"""

_LOST = f"""
WITH run AS MATERIALIZED ({_RUN}), made AS (
    INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at,
                               updated_at)
    SELECT id, workflow, 'v', 'failed', by, {_PAYLOAD}, now() - interval '20 minutes', now() FROM run
)
INSERT INTO orcheo_dispatch.dispatch (run_id, workflow_id, triggered_by, state, outcome, fence, attempts, slot,
                                      claimed_at, begun_at, settled_at, dispatcher_id, worker_id, reason)
SELECT id, workflow, by, 'settled', 'lost', 1, 1, 'none', now() - interval '20 minutes', now() - interval '19 minutes',
       now() - interval '7 minutes' * n, gen_random_uuid(), gen_random_uuid(), 'worker_lost'
  FROM run
"""

_PROCESS = """
INSERT INTO orcheo_dispatch.process (id, kind, host, pid, version, concurrency, running, started_at, seen_at)
VALUES (gen_random_uuid(), %s, %s, %s, '0.1.0', %s, %s, now() - %s::interval, now() - %s::interval)
"""


# One that a worker convicted, one that an operator named; the third has expired.
_ISOLATED = """
INSERT INTO orcheo_dispatch.isolation (workflow_id, workflow_version_id, reason, by, since, until, last_seen_at, times)
SELECT md5('workflow' || n)::uuid::text, version, reason, by, now() - since, now() + left_over, now() - seen, times
  FROM (VALUES (5, 'v', 'ended its runner', 'worker', interval '3 days', interval '19 hours', interval '5 hours', 3),
               (2, '', 'calls a library that is not thread-safe', 'ada', interval '2 days', NULL, NULL, 0),
               (1, 'v', 'held its event loop', 'worker', interval '2 days', interval '-1 hour', interval '25 hours', 1))
    AS i (n, version, reason, by, since, left_over, seen, times)
"""


def fill_busy(database: Database) -> None:
    """A good day: some runs a second, a few fail, nobody waits long."""
    with _seeded(database) as connection:
        _fill(connection, _ENDED, count=2400)
        _fill(connection, _PENDING, count=6, age="1.5 seconds")
        _fill(connection, _LIVE, count=9, age="2 seconds", state="published", silent="0 seconds")
        _fill(connection, _LIVE, count=37, age="40 seconds", state="running", silent="2 seconds")
        _be(connection, "beat", "queue-1", 811, 1, 0, "9 days", "1 second")
        _be(connection, "dispatcher", "queue-1", 812, 1, 0, "9 days", "2 seconds")
        _be(connection, "worker", "run-1", 2201, 32, 21, "3 days 4 hours", "2 seconds")
        _be(connection, "worker", "run-2", 1974, 32, 16, "3 days 4 hours", "4 seconds")


def fill_broken(database: Database) -> None:
    """A bad one: the workers went away, Beat is silent, runs pile up."""
    with _seeded(database) as connection:
        _fill(connection, _ENDED, count=500)
        _fill(connection, _PENDING, count=214, age="22 minutes")
        _fill(connection, _LIVE, count=3, age="25 minutes", state="running", silent="6 minutes")
        _fill(connection, _LOST, count=4)
        _fill(connection, _ISOLATED)
        _be(connection, "beat", "queue-1", 811, 1, 0, "9 days", "7 minutes")
        _be(connection, "dispatcher", "queue-1", 812, 1, 0, "9 days", "2 seconds")
        _be(connection, "worker", "run-1", 2201, 32, 3, "3 days", "6 minutes")
        _be(connection, "worker", "run-2", 1974, 32, 0, "3 days", "6 minutes")


def _seeded(database: Database) -> psycopg.Connection[tuple[object, ...]]:
    connection = psycopg.connect(database.dsn, autocommit=True)
    connection.execute("SELECT setseed(0.42)")
    connection.execute(_WORKFLOWS, {"marker": MARKER, "names": list(WORKFLOWS)})
    return connection


def _fill(connection: psycopg.Connection[tuple[object, ...]], statement: str, **parameters: object) -> None:
    connection.execute(statement, {"marker": MARKER, **parameters})


def _be(connection: psycopg.Connection[tuple[object, ...]], *columns: object) -> None:
    connection.execute(_PROCESS, columns)
