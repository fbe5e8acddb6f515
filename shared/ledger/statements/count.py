"""Count ended claims per minute, once, for the views of dashboards."""

from sqlalchemy import text

# Count the final minutes that were not counted yet, at most six hours of them, so that the statement is always short.
# Two dispatchers that count the same minute insert the same rows in the same order, so that they cannot deadlock. A
# minute is final after two more minutes: until then a transaction that began in it may still settle runs in it. No
# statement of ours takes that long.
COUNT_ENDED = text("""
WITH next AS (
    SELECT min(d.settled_at) AS at FROM orcheo_dispatch.dispatch AS d
     WHERE d.state = 'settled'
       AND d.settled_at >= (SELECT COALESCE(max(e.minute) + interval '1 minute', '-infinity')
                              FROM orcheo_dispatch.ended AS e)
), span AS (
    SELECT date_trunc('minute', n.at) AS since,
           LEAST(date_trunc('minute', n.at) + interval '6 hours', date_trunc('minute', now() - interval '2 minutes'))
               AS until
      FROM next AS n WHERE n.at IS NOT NULL
)
INSERT INTO orcheo_dispatch.ended (minute, outcome, runs)
SELECT date_bin('1 minute', d.settled_at, '2000-01-01 00:00+00'), d.outcome, count(*)
  FROM span AS s JOIN orcheo_dispatch.dispatch AS d
    ON d.state = 'settled' AND d.settled_at >= s.since AND d.settled_at < s.until
 GROUP BY 1, 2
 ORDER BY 1, 2
    ON CONFLICT (minute, outcome) DO NOTHING
""")

PRUNE_ENDED = text("DELETE FROM orcheo_dispatch.ended WHERE minute < now() - interval '31 days'")
