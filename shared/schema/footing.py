"""Requirements on the database; `check` reports what is missing, and processes refuse to start without it.

Checked in one transaction, before anything else. Each finding is one line: what, what was found, how to correct it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from orcheo_dispatch.shared.schema import parts

_READ_ONLY = text("""
SELECT pg_is_in_recovery() AS in_recovery, setting = 'on' AS by_default, source, quote_ident(current_user) AS role
  FROM pg_settings WHERE name = 'default_transaction_read_only'
""")
_SOURCES = {
    "user": ("role {role}", "ALTER ROLE {role} RESET default_transaction_read_only"),
    "database user": (
        "role {role} in this database",
        "ALTER ROLE {role} IN DATABASE ... RESET default_transaction_read_only",
    ),
    "database": ("this database", "ALTER DATABASE ... RESET default_transaction_read_only"),
    "client": ("the DSN", "remove it from ORCHEO_POSTGRES_DSN"),
}
_OF_THE_SERVER = ("the server", "specify a writable server in ORCHEO_POSTGRES_DSN")

_RUNS_TABLE = text("""
SELECT to_regclass('workflow_runs')::oid IS NOT NULL AS found, current_setting('search_path') AS path,
       quote_ident(current_user) AS role,
       COALESCE((SELECT bool_or(has_schema_privilege(c.relnamespace, 'USAGE')) FROM pg_class AS c
                  WHERE c.relname = 'workflow_runs' AND c.relkind IN ('r', 'p')), true) AS may_enter,
       ARRAY(SELECT n.nspname::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
              WHERE c.relname = 'workflow_runs' AND c.relkind IN ('r', 'p') ORDER BY 1) AS schemas
""")

# No rows are hidden if permissive policies whose condition is true cover all commands that we use, and no restrictive
# policy has another condition. Other permissive policies do not matter then, because they are combined with OR.
_HIDDEN = text("""
WITH used (relation, commands) AS (VALUES
    ('workflow_runs', '{r,w}'::"char"[]),
    ('workflows', '{r}'),
    ('workflow_versions', '{r}'),
    ('execution_history', '{r,w}'),
    ('execution_history_steps', '{r,a}'),
    ('orcheo_dispatch.dispatch', '{r,w}'),
    ('orcheo_dispatch.process', '{r,a,w,d}'),
    ('orcheo_dispatch.ended', '{r}'),
    ('orcheo_dispatch.isolation', '{r,a,w,d}'),
    ('orcheo_dispatch.retry', '{r,a,w}'),
    ('orcheo_dispatch.question', '{r,a,w,d}'),
    ('orcheo_dispatch.policy', '{r,a,w,d}'),
    ('orcheo_dispatch.operation', '{r,a}'),
    ('orcheo_dispatch.rate_use', '{r,a,w,d}'),
    ('orcheo_dispatch.alert', '{r,a,w,d}'),
    ('orcheo_dispatch.teller', '{r,w}')
), policy AS (
    SELECT p.polrelid, p.polcmd, p.polpermissive,
           COALESCE(pg_get_expr(p.polqual, p.polrelid), 'true') = 'true'
               AND COALESCE(pg_get_expr(p.polwithcheck, p.polrelid), 'true') = 'true' AS open
      FROM pg_policy AS p
     WHERE EXISTS (SELECT FROM unnest(p.polroles) AS r(oid)
                    WHERE CASE WHEN r.oid = 0 THEN true ELSE pg_has_role(current_user, r.oid, 'USAGE') END)
)
SELECT u.relation
  FROM used AS u
 WHERE row_security_active(to_regclass(u.relation))
   AND (EXISTS (SELECT FROM policy AS p
                 WHERE p.polrelid = to_regclass(u.relation) AND NOT p.polpermissive AND NOT p.open)
        OR EXISTS (SELECT FROM unnest(u.commands) AS c(command)
                    WHERE NOT EXISTS (SELECT FROM policy AS p
                                       WHERE p.polrelid = to_regclass(u.relation) AND p.polpermissive AND p.open
                                         AND p.polcmd IN ('*', c.command))))
 ORDER BY u.relation
""")


@dataclass(frozen=True, slots=True)
class Unmet:
    """A requirement that the database does not meet."""

    what: str
    found: str
    mend: str

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.what}: {self.found}: {self.mend}"


def unmet_to_read(connection: Connection) -> list[Unmet]:
    """Return what prevents all of our commands from using this database."""
    row = connection.execute(_RUNS_TABLE).one()
    if row.found:
        return []
    if not row.schemas:
        missing = "workflow_runs is missing"
        return [Unmet("Orcheo's tables", missing, "start Orcheo's API once on this database, it creates its tables")]
    schemas = ", ".join(row.schemas)
    if not row.may_enter:
        found = f"workflow_runs is in schema {schemas}, which role {row.role} may not use"
        return [Unmet("Orcheo's tables", found, f"GRANT USAGE ON SCHEMA {row.schemas[0]} TO {row.role}")]
    found = f"workflow_runs is in schema {schemas}, which search_path ({row.path}) does not include"
    return [Unmet("Orcheo's tables", found, f"ALTER ROLE {row.role} SET search_path = {row.schemas[0]}")]


def unmet_to_write(connection: Connection) -> list[Unmet]:
    """Return what prevents a dispatcher, a worker or a repair from using this database, except rights of its role."""
    return [*_read_only(connection), *_missing_functions(connection), *_hidden_rows(connection)]


def several_tables(connection: Connection) -> str | None:
    """Return the schemas that have a table of runs, if there are several: we use the first on the search_path."""
    schemas = connection.execute(_RUNS_TABLE).one().schemas
    return ", ".join(schemas) if len(schemas) > 1 else None


def _read_only(connection: Connection) -> list[Unmet]:
    row = connection.execute(_READ_ONLY).one()
    if row.in_recovery:
        return [Unmet("database role", "read-only (in recovery)", "specify the primary in ORCHEO_POSTGRES_DSN")]
    if not row.by_default:
        return []
    where, mend = (each.format(role=row.role) for each in _SOURCES.get(row.source, _OF_THE_SERVER))
    return [Unmet("database role", f"read-only (default_transaction_read_only is on for {where})", mend)]


def _missing_functions(connection: Connection) -> list[Unmet]:
    missing = [name for name in parts.missing(connection) if name in parts.FUNCTIONS]
    return [Unmet("our schema", f"{', '.join(missing)} is missing", "orcheo-dispatch migrate")] if missing else []


def _hidden_rows(connection: Connection) -> list[Unmet]:
    hidden = connection.execute(_HIDDEN).scalars().all()
    if not hidden:
        return []
    # A hidden run looks deleted: its row would be settled and its slot returned while the run executes.
    found = f"policies may hide rows of {', '.join(hidden)} from this role"
    return [Unmet("row-level security", found, "give it BYPASSRLS, or a policy for all commands USING (true)")]
