"""Find out what a poll has to do. Only a look: the statement that acts on it decides by itself."""

from sqlalchemy import text

# Whether leases of running runs have expired, whether leases of claims have, how many claims wait to begin,
# whether a run of ours is pending, whether the index on turns exists, and whether the server is read-only: it
# is in recovery, or a default makes it so.
LOOK = text("""
SELECT EXISTS (SELECT FROM orcheo_dispatch.dispatch WHERE state = 'running' AND lease_expires_at < now()) AS lost,
       EXISTS (SELECT FROM orcheo_dispatch.dispatch
                WHERE state IN ('claimed', 'published') AND lease_expires_at < now()) AS lapsed,
       (SELECT count(*) FROM orcheo_dispatch.dispatch WHERE state IN ('claimed', 'published')) AS queued,
       EXISTS (SELECT FROM workflow_runs AS r
                WHERE r.status = 'pending'
                  AND ((:every_trigger OR r.triggered_by = ANY (CAST(:triggers AS text[])))
                           AND NOT orcheo_dispatch.of_chatkit(r.triggered_by, r.payload)
                       OR COALESCE((SELECT true FROM orcheo_dispatch.dispatch AS a WHERE a.run_id = r.id), false))
               ) AS pending,
       COALESCE((SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:index)), false) AS in_turn,
       EXTRACT(epoch FROM now())::float8 AS at,
       current_setting('transaction_read_only') = 'on' AS read_only
""")
# A server that takes no writes refuses this one, too, and any other changes nothing by it.
WRITE_NOTHING = text("UPDATE orcheo_dispatch.dispatch SET state = state WHERE false")
# How many claims wait to begin.
QUEUED = text("SELECT count(*) FROM orcheo_dispatch.dispatch WHERE state IN ('claimed', 'published')")
