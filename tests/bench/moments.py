"""When a run was committed and when its begin was: noted by a trigger on the API's table, for whoever writes to it."""

from __future__ import annotations

from typing import Any

import psycopg

# Deferred, so that it runs at the end of the transaction, when all is done but the commit itself. One clock, the
# server's, and the same cost for all.
_NOTE = """
CREATE UNLOGGED TABLE bench_moments (run_id text NOT NULL, status text NOT NULL, at timestamptz NOT NULL);
CREATE FUNCTION bench_note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO bench_moments VALUES (NEW.id, NEW.status, clock_timestamp());
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER bench_note AFTER INSERT OR UPDATE ON workflow_runs DEFERRABLE INITIALLY DEFERRED
   FOR EACH ROW WHEN (NEW.status IN ('pending', 'running')) EXECUTE FUNCTION bench_note();
"""
_FORGET_ALL = "DROP TRIGGER bench_note ON workflow_runs; DROP FUNCTION bench_note; DROP TABLE bench_moments"
_DELAYS = """
SELECT EXTRACT(epoch FROM min(m.at) FILTER (WHERE m.status = 'running')
                        - min(m.at) FILTER (WHERE m.status = 'pending'))::float8 AS seconds
  FROM bench_moments AS m GROUP BY m.run_id ORDER BY min(m.at)
"""


class Moments:
    """Notes the moments of runs in one database, from its making until `close`."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        """Make the trigger; `connection` commits by itself and stays the caller's."""
        self._connection = connection
        connection.execute(_NOTE)

    def forget(self) -> None:
        """Forget what was noted so far."""
        self._connection.execute("TRUNCATE bench_moments")

    def milliseconds(self) -> list[float]:
        """Return from commit to begin of each run, in order of their commits.

        Raises `RuntimeError` where a run did not begin.
        """
        found = [row[0] for row in self._connection.execute(_DELAYS)]
        if None in found:
            raise RuntimeError(f"{found.count(None)} of {len(found)} runs did not begin")
        return [1000 * seconds for seconds in found]

    def close(self) -> None:
        """Take the trigger out."""
        self._connection.execute(_FORGET_ALL)
