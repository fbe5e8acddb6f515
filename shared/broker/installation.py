"""Identify the installation that this process belongs to, and name its queues and keys in Redis.

Several installations may share one Redis: staging and production, or two with default settings. Their names differ
because their databases differ. Only names that are chosen here contain a colon: queues in the settings never do.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import psycopg

from orcheo_dispatch.shared.database import session
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.settings.dispatch import DEFAULT_QUEUE
from orcheo_dispatch.shared.settings.field_types import DEFAULT_QUEUE_NAME
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.text.redaction import error_line

OLD_DISPATCH_QUEUE = "orcheo.dispatch"
"""Queue of ticks of a Beat without a known installation, or of an earlier release; all dispatchers read it."""
OLD_UNACKED = "orcheo.unacked"
_IDENTITY_CHARACTERS = 12
# A dump that is restored on another server differs in both parts, a database created from a template in the second. A
# copy of the data directory differs in neither.
_IDENTITY = """
SELECT s.system_identifier::text || ':' || d.oid::text
  FROM pg_control_system() AS s, pg_database AS d WHERE d.datname = current_database()
"""


@dataclass(frozen=True, slots=True)
class Installation:
    """Name of the installation, which is part of all our names in Redis."""

    name: str
    old_runs: str = DEFAULT_QUEUE
    """ORCHEO_DISPATCH_QUEUE: the queue of runs in earlier releases."""

    @property
    def runs(self) -> str:
        """The queue of runs."""
        # A Redis user with the documented rights may use names that begin with `orcheo.`.
        base = f"orcheo.runs:{self.name}"
        return base if self.old_runs == DEFAULT_QUEUE else f"{base}:{self.old_runs}"

    def queue(self, name: str | None) -> str:
        """Return the queue of runs with this name in policies; None or `default` is the default one."""
        return self.runs if name in (None, DEFAULT_QUEUE_NAME) else f"{self.runs}:queue:{name}"

    @property
    def dispatch(self) -> str:
        """The queue of ticks."""
        return f"{OLD_DISPATCH_QUEUE}:{self.name}"

    @property
    def cron(self) -> str:
        """The queue of cron messages: workers that support them read it, on a separate connection."""
        return f"orcheo.cron:{self.name}"

    @property
    def cron_record(self) -> str:
        """Prefix of the keys that record when cron triggers were last dispatched, and the last failure."""
        return f"orcheo.cron.last:{self.name}"

    def reader(self, worker_id: str) -> str:
        """Return the key under which this worker records that it reads the queue of runs; see `readers`."""
        return f"orcheo.readers:{self.name}:{worker_id}"

    @property
    def unacked(self) -> str:
        """Key where workers of earlier releases keep messages that were delivered and not acknowledged."""
        return f"{OLD_UNACKED}:{self.name}"


def find_installation(settings: Settings) -> Installation:
    """Return the installation of the settings, or of their database. Raises `DatabaseError`.

    Every process of an installation must find the same name, whatever its database role and address.
    """
    return Installation(settings.namespace or _identity(settings.postgres_dsn.get_secret_value()), settings.queue)


def _identity(dsn: str) -> str:
    """Return a name for the database that is unique across all servers."""
    try:
        # Without SQLAlchemy, which Beat does not import.
        with psycopg.connect(
            dsn,
            connect_timeout=session.CONNECT_TIMEOUT_SECONDS,
            autocommit=True,
            application_name="orcheo-dispatch start",
        ) as connection:
            connection.execute(session.begin(connection.info.server_version).encode())
            row = connection.execute(_IDENTITY).fetchone()
            connection.execute("COMMIT")
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFunction) as error:
        raise DatabaseError(
            f"the identity of the database cannot be read ({error_line(error)}): set ORCHEO_DISPATCH_NAMESPACE to a "
            "name, the same for all processes of this installation"
        ) from error
    except psycopg.Error as error:
        raise DatabaseError(error_line(error)) from error
    assert row is not None
    return "db" + hashlib.sha256(str(row[0]).encode()).hexdigest()[:_IDENTITY_CHARACTERS]
