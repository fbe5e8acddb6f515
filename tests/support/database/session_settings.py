"""Session settings that a company gives to its roles, and how a test gives them to one login role in one database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import unquote, urlsplit

import psycopg
from psycopg import sql

from tests.support.database.databases import Database

WORKS: dict[str, dict[str, str]] = {
    # A connection that is being made, and is not prepared yet, must not exceed these on a busy machine.
    "statement_timeout": {"statement_timeout": "10ms"},
    "lock_timeout": {"lock_timeout": "1ms"},
    "idle_in_transaction_session_timeout": {"idle_in_transaction_session_timeout": "1ms"},
    "idle_session_timeout": {"idle_session_timeout": "500ms"},
    "transaction_timeout": {"transaction_timeout": "20ms"},
    "DateStyle German": {"DateStyle": "German, DMY"},
    "DateStyle SQL": {"DateStyle": "SQL, DMY"},
    "DateStyle Postgres": {"DateStyle": "Postgres, MDY"},
    "TimeZone": {"TimeZone": "Asia/Kathmandu"},
    "TimeZone POSIX": {"TimeZone": "<+03>-03:30"},
    "IntervalStyle": {"IntervalStyle": "iso_8601"},
    "extra_float_digits": {"extra_float_digits": "-15"},
    "bytea_output": {"bytea_output": "escape"},
    "standard_conforming_strings": {"standard_conforming_strings": "off"},
    "client_encoding": {"client_encoding": "LATIN1"},
    "serializable": {"default_transaction_isolation": "serializable", "default_transaction_deferrable": "on"},
    "repeatable read": {"default_transaction_isolation": "repeatable read"},
    "search_path": {"search_path": "pg_temp, information_schema, public"},
    "row_security": {"row_security": "off"},
    "work_mem": {"work_mem": "64kB", "hash_mem_multiplier": "1", "temp_file_limit": "64kB"},
    "planner": {
        f"enable_{method}": "off"
        for method in ("hashjoin", "indexscan", "indexonlyscan", "material", "mergejoin", "nestloop", "seqscan", "sort")
    },
    "jit": {"jit": "on", "jit_above_cost": "0", "jit_inline_above_cost": "0", "jit_optimize_above_cost": "0"},
    "synchronous_commit": {"synchronous_commit": "off"},
    "session_replication_role": {"session_replication_role": "replica"},
    "statement logging": {"log_statement": "all", "log_min_duration_statement": "0", "log_duration": "on"},
    "messages": {"client_min_messages": "debug5", "lc_messages": "C"},
    "parallel": {"debug_parallel_query": "on", "parallel_setup_cost": "0", "min_parallel_table_scan_size": "0"},
}
"""Settings under which all must work, by what is odd about them."""

SINCE = {"transaction_timeout": 17_00_00, "parallel": 16_00_00}
"""The version of Postgres that has them, where it is not the oldest that we support."""

ALL_AT_ONCE = {
    **WORKS["DateStyle German"],
    **WORKS["TimeZone"],
    **WORKS["IntervalStyle"],
    **WORKS["serializable"],
    **WORKS["bytea_output"],
    **WORKS["row_security"],
    **WORKS["work_mem"],
    **WORKS["planner"],
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "1ms",
    "statement_timeout": "10ms",
}


def give(database: Database, dsns: Iterable[str], settings: Mapping[str, str]) -> None:
    """Have the users of these DSNs begin their sessions in `database` with these settings."""
    with psycopg.connect(database.dsn, autocommit=True) as owner:
        for dsn in dsns:
            for name, value in settings.items():
                statement = sql.SQL("ALTER ROLE {} IN DATABASE {} SET {} = {}").format(
                    sql.Identifier(unquote(urlsplit(dsn).username or "")),
                    sql.Identifier(database.name),
                    sql.Identifier(name),
                    sql.SQL(", ").join(map(sql.Literal, value.split(", "))) if name == "search_path" else value,
                )
                owner.execute(statement)
