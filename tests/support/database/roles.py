"""Login roles of least privilege for the session: members of roles that `ops/sql/roles.sql` makes.

Roles belong to the server, not to a database. So the session's have names of their own: those of somebody
who uses the same server, or of another session, are neither used nor dropped.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from orcheo_dispatch.ops.host.rights import roles_sql

_NAME = re.compile(r"\borcheo_(?P<kind>dispatcher|worker|dashboard)\b")
_CONNECT_SECONDS = 5


class Kind(StrEnum):
    """The roles of `roles.sql`."""

    DISPATCHER = "dispatcher"
    WORKER = "worker"
    DASHBOARD = "dashboard"


@dataclass(frozen=True, slots=True)
class Roles:
    """The session's group roles, and a login role that is a member of each."""

    suffix: str = field(default_factory=lambda: secrets.token_hex(4))
    _password: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    def group(self, kind: Kind) -> str:
        """Return the session's name for `orcheo_<kind>`."""
        return f"test_{kind}_{self.suffix}"

    def login(self, kind: Kind) -> str:
        """Return the member that logs in."""
        return f"test_{kind}_login_{self.suffix}"

    @property
    def sql(self) -> str:
        """The SQL that the command prints, with the session's names."""
        return _NAME.sub(lambda found: self.group(Kind(found["kind"])), roles_sql())

    def dsn(self, url: str, kind: Kind) -> str:
        """Return `url` as the login role of this kind."""
        parts = urlsplit(url)
        address = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{self.login(kind)}:{self._password}@{address}"))

    def make(self, admin: psycopg.Connection[tuple[object, ...]]) -> None:
        """Make all of them; the rights come with `sql`, in each database."""
        for kind in Kind:
            admin.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(self.group(kind))))
            # The user of the tests is a member, so that it may end the connections of a database that it drops.
            admin.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE {} ROLE CURRENT_USER").format(
                    sql.Identifier(self.login(kind)), sql.Literal(self._password), sql.Identifier(self.group(kind))
                )
            )

    def drop(self, admin: psycopg.Connection[tuple[object, ...]]) -> None:
        """Drop all of them; the databases in which they have rights are gone by now."""
        for kind in Kind:
            for name in (self.login(kind), self.group(kind)):
                admin.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))


@contextmanager
def made(admin: psycopg.Connection[tuple[object, ...]], url: str) -> Iterator[Roles | str]:
    """Yield the session's roles and drop them; where this server lets us have none, yield the reason."""
    roles = Roles()
    try:
        roles.make(admin)
    except psycopg.errors.InsufficientPrivilege:
        yield "the user of TEST_DATABASE_URL may not make roles: ALTER ROLE ... CREATEROLE lets it"
        return
    try:
        psycopg.connect(roles.dsn(url, Kind.DISPATCHER), connect_timeout=_CONNECT_SECONDS).close()
    except psycopg.OperationalError:
        yield "new roles cannot log in with a password: pg_hba.conf of the test server must let them"
    else:
        yield roles
    finally:
        roles.drop(admin)
