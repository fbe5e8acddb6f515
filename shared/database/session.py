"""Set the settings that our sessions rely on, whatever the defaults of the role, the database and the server.

They are sent in two ways:
- together with each BEGIN, because a transaction pooler may give each transaction another session;
- once for each connection that was found to be a session of its own.

`default_transaction_read_only` is not among them. A failover or an operator that turns it on wants no writes: such a
server is rejected at startup, and later counts as unavailable.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

CONNECT_TIMEOUT_SECONDS = 5
"""Maximum time that an attempt to connect to one host takes."""
STATEMENT_TIMEOUT_MILLISECONDS = 30_000
LOCK_TIMEOUT_MILLISECONDS = 10_000
"""Maximum time that a statement waits for one lock, unless the caller sets a lower one."""
IDLE_IN_TRANSACTION_TIMEOUT_MILLISECONDS = 15_000
"""Our transactions wait for nothing but Postgres. One that is idle for longer is ended, which releases its locks.

A run is reaped at most this much later if its worker was paused in the middle of a transaction on the run's row.
"""
TRANSACTION_TIMEOUT_MILLISECONDS = 300_000
"""Maximum duration of a transaction. The longest are claims, with at most eight statements."""
_TRANSACTION_TIMEOUT, _TRANSACTION_TIMEOUT_SINCE = "transaction_timeout", 17_00_00

# Timeouts that a role has, for example for its users, must not end our statements; if it has none, ours still apply.
_TIMEOUTS = {
    "statement_timeout": str(STATEMENT_TIMEOUT_MILLISECONDS),
    "lock_timeout": str(LOCK_TIMEOUT_MILLISECONDS),
    "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_TIMEOUT_MILLISECONDS),
}
# Formats of values. psycopg reads timestamps only in ISO format, and cannot read some time zones.
_FORMATS = {
    "DateStyle": "ISO",
    "TimeZone": "UTC",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
}
# We read no messages. Otherwise a trigger that raises a hundred thousand notices would send them all to us.
_MESSAGES = {"client_min_messages": "error"}
# "off" would turn each policy into an error. A policy that hides rows is rejected at startup
# (`shared/schema/footing.py`).
_ROWS = {"row_security": "on"}
# Prepared statements are planned once; tests/plans checks that their plans are good for any parameters. By default
# Postgres would plan those with arrays each time, which takes longer than their execution. JIT compilation would take
# even longer. A bitmap scan collects all index entries that match and marks none as dead. In tables like these there
# are dozens of dead entries per live one between vacuums (133 thousand for 4 thousand, seen in a busy claim).
# The others are Postgres' own defaults: if a role has turned one of them off as an experiment, claims must not read all
# runs.
_PLANS = {
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "enable_bitmapscan": "off",
    "enable_indexscan": "on",
    "enable_indexonlyscan": "on",
    "enable_seqscan": "on",
    "enable_sort": "on",
    "enable_nestloop": "on",
    "enable_hashjoin": "on",
    "enable_mergejoin": "on",
    "enable_hashagg": "on",
    "enable_material": "on",
    "work_mem": "4096",
}
# With "off", a crash of the server could undo a claim whose message is already in Redis, and the run would be claimed
# again. Sent only if a session has "off": other values, such as "remote_apply", are an operator's choice.
_DURABLE = {"synchronous_commit": "on"}


def settings(server_version: int, *, durable: bool = False) -> Mapping[str, str]:
    """Return the settings that our transactions rely on, for a server of this version (for example `170004`).

    With `durable`, they include that a commit is on disk before it is acknowledged.
    """
    found = {**_TIMEOUTS, **_FORMATS, **_MESSAGES, **_ROWS, **_PLANS, **(_DURABLE if durable else {})}
    if server_version >= _TRANSACTION_TIMEOUT_SINCE:
        found[_TRANSACTION_TIMEOUT] = str(TRANSACTION_TIMEOUT_MILLISECONDS)
    return MappingProxyType(found)


def begin(server_version: int, *, durable: bool = False) -> str:
    """Return the statements that begin a transaction, in one message: one round trip.

    They do not include READ WRITE, so the first write to a read-only server fails.
    """
    return "; ".join(
        ["BEGIN ISOLATION LEVEL READ COMMITTED, NOT DEFERRABLE", set_local(server_version, durable=durable)]
    )


def set_local(server_version: int, *, durable: bool = False) -> str:
    """Return the statements that apply the settings to a transaction that other code has begun."""
    found = settings(server_version, durable=durable)
    statements = [f"SET LOCAL {name} = '{value}'" for name, value in found.items()]
    if _TRANSACTION_TIMEOUT in found:
        # The timer of this transaction already runs, and only 0 stops it; a longer timeout applies to the next one.
        statements.insert(0, f"SET LOCAL {_TRANSACTION_TIMEOUT} = 0")
    return "; ".join(statements)


def set_session(server_version: int, **instead: int) -> str:
    """Return the statements that apply the settings to a connection which is a session of its own.

    `instead` overrides the values of some settings. Those of the planner are not set: such connections do other work.
    """
    return "; ".join(f"SET {name} = '{value}'" for name, value in _of_a_session(server_version, instead).items())


def _of_a_session(server_version: int, instead: Mapping[str, int]) -> dict[str, str]:
    found = {**_TIMEOUTS, **_FORMATS, **_MESSAGES, **_ROWS}
    found["default_transaction_isolation"] = "read committed"
    found["default_transaction_deferrable"] = "off"
    if server_version >= _TRANSACTION_TIMEOUT_SINCE:
        found[_TRANSACTION_TIMEOUT] = "0"
    return {**found, **{name: str(value) for name, value in instead.items()}}
