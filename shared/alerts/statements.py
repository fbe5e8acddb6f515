"""Decide which alerts are sent, and by which process.

Several processes see the same conditions. One of them, the teller, decides what is due, and claims each message by a
conditional statement before it sends it.
"""

from sqlalchemy import text

# Become the teller, or remain it. A dispatcher takes over from a worker at once, all others when the lease has expired.
ALERT_LEAD = text("""
UPDATE orcheo_dispatch.teller AS t
   SET by = CAST(:id AS uuid), kind = :kind, until = now() + make_interval(secs => :lease)
 WHERE t.by = CAST(:id AS uuid)
    OR t.until < now() - make_interval(secs => :seconds)
    OR (t.kind = 'worker' AND :kind = 'dispatcher')
RETURNING true
""")

# Stop being the teller, so that another process takes over without waiting.
ALERT_LEAVE = text("UPDATE orcheo_dispatch.teller SET until = now() WHERE by = CAST(:id AS uuid)")

# Record that conditions are true. `since` starts anew if the condition had ended, or if nobody found it true for a
# while before any message was sent.
ALERT_SEEN = text("""
INSERT INTO orcheo_dispatch.alert AS a (name, subject, value)
SELECT s.name, s.subject, s.value
  FROM unnest(CAST(:names AS text[]), CAST(:subjects AS text[]), CAST(:numbers AS float8[])) AS s(name, subject, value)
 ORDER BY s.name, s.subject
    ON CONFLICT (name, subject) DO UPDATE
   SET value = EXCLUDED.value, seen_at = now(), resolved_at = NULL,
       since = CASE WHEN a.resolved_at IS NOT NULL
                      OR (a.told_at IS NULL AND a.seen_at < now() - make_interval(secs => :gap))
                    THEN now() ELSE a.since END,
       told_at = CASE WHEN a.resolved_at IS NULL THEN a.told_at END
""")

# Keep open what can be neither confirmed nor denied, because a server does not answer.
ALERT_KEEP = text("""
UPDATE orcheo_dispatch.alert SET seen_at = now()
 WHERE name = ANY (CAST(:names AS text[])) AND resolved_at IS NULL AND told_at IS NOT NULL
""")

# Claim the messages that are due: of an alert whose condition has been true for as long as its rule says, of one that
# is to be repeated, and of one that has ended. No other process sends them until :lease seconds have passed.
ALERT_CLAIM = text("""
WITH rule AS (
    SELECT r.name, make_interval(secs => r.hold) AS hold
      FROM unnest(CAST(:names AS text[]), CAST(:holds AS float8[])) AS r(name, hold)
), due AS (
    SELECT a.name, a.subject,
           a.told_at IS NOT NULL AND a.seen_at < now() - make_interval(secs => :calm) AS resolved
      FROM orcheo_dispatch.alert AS a JOIN rule AS r ON r.name = a.name
     WHERE a.resolved_at IS NULL AND (a.sending_until IS NULL OR a.sending_until < now())
       AND CASE WHEN a.told_at IS NULL
                THEN a.since <= now() - r.hold AND a.seen_at >= now() - make_interval(secs => :gap)
                WHEN a.seen_at < now() - make_interval(secs => :calm) THEN :may_resolve
                ELSE a.told_at < now() - make_interval(secs => :repeat)
                     AND a.seen_at >= now() - make_interval(secs => :gap) END
     ORDER BY a.since LIMIT 50
       FOR UPDATE OF a SKIP LOCKED
)
UPDATE orcheo_dispatch.alert AS a
   SET by = CAST(:id AS uuid), sending_until = now() + make_interval(secs => :lease)
  FROM due AS d
 WHERE a.name = d.name AND a.subject = d.subject
RETURNING a.name, a.subject, a.value, d.resolved, a.told_at IS NOT NULL AS again,
          EXTRACT(epoch FROM CASE WHEN d.resolved THEN a.seen_at ELSE now() END - a.since)::float8 AS seconds
""")

# Record that a message was delivered.
ALERT_TOLD = text("""
UPDATE orcheo_dispatch.alert
   SET sending_until = NULL, told_at = CASE WHEN :resolved THEN told_at ELSE now() END,
       resolved_at = CASE WHEN :resolved THEN now() END
 WHERE name = :name AND subject = :subject AND by = CAST(:id AS uuid) AND resolved_at IS NULL
""")

# Record that no target accepted a message: it is due again after :seconds.
ALERT_UNSENT = text("""
UPDATE orcheo_dispatch.alert SET sending_until = now() + make_interval(secs => :seconds)
 WHERE name = :name AND subject = :subject AND by = CAST(:id AS uuid) AND resolved_at IS NULL
""")

# Delete what has not been true for a long time.
ALERT_PRUNE = text("DELETE FROM orcheo_dispatch.alert WHERE seen_at < now() - make_interval(secs => :retention)")

# What is true now: `pending` for less time than its rule says, `firing`, or `recovering`, when it ended a moment ago.
ALERTS = text("""
SELECT a.name, a.subject, a.value, a.since, a.told_at,
       CASE WHEN a.told_at IS NULL THEN 'pending'
            WHEN a.seen_at < now() - make_interval(secs => :gap) THEN 'recovering' ELSE 'firing' END AS state,
       EXTRACT(epoch FROM now() - a.since)::float8 AS seconds
  FROM orcheo_dispatch.alert AS a
 WHERE a.resolved_at IS NULL AND (a.told_at IS NOT NULL OR a.seen_at >= now() - make_interval(secs => :gap))
 ORDER BY a.since, a.name, a.subject LIMIT :limit
""")

# How many of the runs that ended within 15 minutes failed, over the newest 20,000.
ALERT_FAILING = text("""
SELECT count(*) AS ended, count(*) FILTER (WHERE n.outcome IN ('failed', 'timed_out')) AS failed
  FROM (SELECT d.outcome FROM orcheo_dispatch.dispatch AS d
         WHERE d.state = 'settled' AND d.settled_at > now() - interval '15 minutes'
           AND d.outcome IN ('succeeded', 'failed', 'timed_out', 'cancelled')
         ORDER BY d.settled_at DESC LIMIT 20000) AS n
""")

# Hosts on which more than two processes of one kind that started within the hour vanished.
ALERT_RESTARTS = text("""
SELECT p.kind || ' on ' || p.host AS subject, count(*) AS starts
  FROM orcheo_dispatch.processes AS p
 WHERE p.vanished AND p.started_at > now() - interval '1 hour'
 GROUP BY p.kind, p.host HAVING count(*) > 2
 ORDER BY starts DESC, subject LIMIT 20
""")

ALERT_DISPATCHERS = text("""
SELECT count(*) FROM orcheo_dispatch.processes AS p WHERE p.kind = 'dispatcher' AND p.alive
""")
