"""Postgres and Redis for one system, a login role for each of its processes, and a note of what each role writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres, EmbeddedRedis
from tests.support.database.databases import Database, create
from tests.support.servers.servers import scratch

ROLES = ("first", "second")
_PASSWORD = "not-a-secret"  # a server that listens on 127.0.0.1 for minutes
_NOTES = """
CREATE SCHEMA IF NOT EXISTS peers;
CREATE TABLE IF NOT EXISTS peers.written (
    relation text NOT NULL, role text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE OR REPLACE FUNCTION peers.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR OLD IS DISTINCT FROM NEW THEN
        INSERT INTO peers.written (relation, role) VALUES (TG_TABLE_NAME, session_user);
    END IF;
    RETURN NULL;
END $$;
"""
_TRIGGER = """
CREATE OR REPLACE TRIGGER peers_note AFTER INSERT OR UPDATE ON {}
FOR EACH ROW EXECUTE FUNCTION peers.note()
"""
_WRITTEN = """
SELECT count(*) FROM peers.written
 WHERE role = %s AND relation = ANY (%s) AND at > to_timestamp(%s)
"""


@dataclass(frozen=True, slots=True)
class Ground:
    """Servers that outlive the processes of the system."""

    folder: Path
    database: Database
    redis_url: str

    def dsn(self, role: str) -> str:
        """Return the DSN of the process that has this role."""
        parts = urlsplit(self.database.dsn)
        return urlunsplit(parts._replace(netloc=f"{role}:{_PASSWORD}@{parts.hostname}:{parts.port}"))

    def note_writes(self, tables: Sequence[str]) -> None:
        """Note from now on which role inserts or changes rows of these tables."""
        with psycopg.connect(self.database.dsn, autocommit=True) as connection:
            connection.execute(_NOTES)
            for table in tables:
                connection.execute(sql.SQL(_TRIGGER).format(sql.Identifier(*table.split("."))))

    def written(self, role: str, tables: Sequence[str], since: float) -> int:
        """Return how many rows of these tables the role has inserted or changed since then."""
        names = [table.rpartition(".")[2] for table in tables]
        with psycopg.connect(self.database.dsn, autocommit=True) as connection:
            row = connection.execute(_WRITTEN, (role, names, since)).fetchone()
        assert row is not None
        return int(row[0])


@contextmanager
def ground() -> Iterator[Ground]:
    """Start the servers; leave nothing behind."""
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres", durable=False))
        redis = stack.enter_context(EmbeddedRedis(folder / "redis"))
        with psycopg.connect(postgres.url, autocommit=True) as admin:
            database = create(admin, postgres.url)
            for role in ROLES:
                # Superusers: what is compared is not who may do what.
                statement = sql.SQL("CREATE ROLE {} LOGIN SUPERUSER PASSWORD {}")
                admin.execute(statement.format(sql.Identifier(role), sql.Literal(_PASSWORD)))
        yield Ground(folder, database, redis.url)
