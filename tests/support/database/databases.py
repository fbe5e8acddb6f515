"""Template databases, and clones of them that tests have to themselves."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from orcheo_dispatch.ops.sandbox.orcheo_environment import orcheo_environment, process_environment
from tests.support.database.roles import Kind, Roles
from tests.support.servers.servers import Servers, scratch

_TABLES = Path(__file__).parents[1] / "orcheo" / "orcheo_tables.py"
_TABLES_SECONDS = 180
_STRATEGIES_SINCE = 15_00_00
_EMPTY = "template0"


@dataclass(frozen=True, slots=True)
class Database:
    """A database that one test has to itself."""

    name: str
    dsn: str = field(repr=False)
    roles: Roles | None = None
    """Who has rights of least privilege in it, if anybody has."""

    def dsn_of(self, kind: Kind) -> str:
        """Return its DSN for a login role of this kind, or the owner's where there are no roles."""
        return self.roles.dsn(self.dsn, kind) if self.roles else self.dsn

    def seen_by(self, kind: Kind) -> Database:
        """Return the same database, as a login role of this kind sees it."""
        return replace(self, dsn=self.dsn_of(kind), roles=None)


def create(admin: psycopg.Connection[tuple[object, ...]], url: str, template: str = _EMPTY) -> Database:
    """Create a database from `template` on the server of `url`."""
    name = f"test_{secrets.token_hex(6)}"
    options = ["TEMPLATE {}"]
    if template == _EMPTY:
        # Whatever the server's own locale made of it: in SQL_ASCII psycopg returns text as bytes.
        options.append("ENCODING 'UTF8' LOCALE 'C'")
    if admin.info.server_version >= _STRATEGIES_SINCE:
        # Five times faster than the default: it writes no WAL for what it copies.
        options.append("STRATEGY file_copy")
    statement = sql.SQL("CREATE DATABASE {} " + " ".join(options))
    admin.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
    return Database(name, _with_name(url, name))


def drop(admin: psycopg.Connection[tuple[object, ...]], database: Database) -> None:
    """Drop a database, whoever is connected to it."""
    admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database.name)))


def close(admin: psycopg.Connection[tuple[object, ...]], database: Database) -> None:
    """Let nobody connect any more: PostgreSQL refuses to clone a database that is in use, by autovacuum too."""
    admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(database.name)))


@contextmanager
def cloned(
    admin: psycopg.Connection[tuple[object, ...]], servers: Servers, template: str = _EMPTY
) -> Iterator[Database]:
    """Yield a new database and drop it."""
    database = create(admin, servers.postgres_url, template)
    try:
        yield database
    finally:
        drop(admin, database)


def make_orcheo_tables(database: Database, redis_url: str) -> None:
    """Have the real Orcheo make its tables and one workspace, in a process of its own."""
    with scratch() as home:
        variables = orcheo_environment(database.dsn, redis_url, home)
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(_TABLES)],
            env=process_environment(variables),
            cwd=home,
            capture_output=True,
            check=False,
            text=True,
            timeout=_TABLES_SECONDS,
        )
    if done.returncode != 0:
        raise RuntimeError(f"Orcheo did not make its tables: {done.stderr[-2000:]}")


def migrate(database: Database) -> None:
    """Bring the database to our newest schema."""
    from orcheo_dispatch.shared.schema import migrate as migrations
    from orcheo_dispatch.shared.settings.model import Settings

    migrations.migrate(Settings.load(postgres_dsn=database.dsn))


def grant(database: Database, roles: Roles) -> None:
    """Give the roles their rights in the database, as its owner does after `migrate`."""
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(roles.sql)


def _with_name(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
