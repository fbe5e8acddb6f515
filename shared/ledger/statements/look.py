"""Find out what a poll has to do. The result is only a hint: the statements that act on it check again."""

from sqlalchemy import text

# Whether leases of running runs have expired, whether claims have lapsed, whether retries are due, how many claims wait
# to begin in the default queue, whether any of our runs is pending, whether the index on turns is valid, whether the
# server is read-only (because it is in recovery, or by default), and which kinds of policies there are.
LOOK = text("""
SELECT EXISTS (SELECT FROM orcheo_dispatch.dispatch WHERE state = 'running' AND lease_expires_at < now()) AS lost,
       EXISTS (SELECT FROM orcheo_dispatch.dispatch
                WHERE state IN ('claimed', 'published') AND lease_expires_at < now()) AS lapsed,
       EXISTS (SELECT FROM orcheo_dispatch.retry WHERE next_at <= now()) AS retries,
       (SELECT count(*) FROM orcheo_dispatch.dispatch WHERE state IN ('claimed', 'published'))
           - CASE WHEN p.named_queues THEN (SELECT count(*) FROM orcheo_dispatch.dispatch
                                             WHERE state IN ('claimed', 'published') AND queue IS NOT NULL)
                  ELSE 0 END AS queued,
       EXISTS (SELECT FROM workflow_runs AS r
                WHERE r.status = 'pending'
                  AND ((:every_trigger OR r.triggered_by = ANY (CAST(:triggers AS text[])))
                           AND NOT orcheo_dispatch.of_chatkit(r.triggered_by, r.payload)
                       OR COALESCE((SELECT true FROM orcheo_dispatch.dispatch AS a WHERE a.run_id = r.id), false))
               ) AS pending,
       COALESCE((SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:index)), false) AS in_turn,
       EXTRACT(epoch FROM now())::float8 AS at,
       current_setting('transaction_read_only') = 'on' AS read_only,
       p.limited OR p.rated AS limited, p.rated, p.named_queues, p.maintenance
  FROM (SELECT EXISTS (SELECT FROM orcheo_dispatch.policy WHERE max_running IS NOT NULL) AS limited,
               EXISTS (SELECT FROM orcheo_dispatch.policy WHERE rate_runs IS NOT NULL) AS rated,
               EXISTS (SELECT FROM orcheo_dispatch.policy WHERE queue IS NOT NULL) AS named_queues,
               COALESCE((SELECT maintenance FROM orcheo_dispatch.policy WHERE workspace_id = '' AND workflow_id = ''),
                        false) AS maintenance) AS p
""")
# A read-only server refuses this statement; on any other server it changes nothing.
WRITE_NOTHING = text("UPDATE orcheo_dispatch.dispatch SET state = state WHERE false")
# Number of claims that wait to begin in the default queue.
QUEUED = text("""
SELECT count(*) FROM orcheo_dispatch.dispatch WHERE state IN ('claimed', 'published') AND queue IS NULL
""")
