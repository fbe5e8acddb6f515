"""Who is alive."""

from sqlalchemy import text

# A process says that it is alive.
SEEN = text("""
INSERT INTO orcheo_dispatch.process AS p (id, kind, host, pid, version, concurrency, running, triggers)
VALUES (CAST(:id AS uuid), :kind, :host, :pid, :version, :concurrency, :running,
        CAST(:triggers AS text[]))
    ON CONFLICT (id) DO UPDATE SET seen_at = now(), running = EXCLUDED.running
""")

GONE = text("DELETE FROM orcheo_dispatch.process WHERE id = CAST(:id AS uuid)")

PRUNE_PROCESSES = text("""
DELETE FROM orcheo_dispatch.process WHERE seen_at < now() - make_interval(secs => :retention)
""")
