"""Set what our sessions rely on, whatever the defaults of the role, the database and the server are.

One list, sent in two ways:
- in the message of each BEGIN, since a transaction pooler gives each transaction another session;
- once for each connection that was found to be a session of its own.

`default_transaction_read_only` is not among them. Who switches it on, a failover or an operator, wants no writes: such
a server is refused at the start, and later counts as unavailable.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

STATEMENT_TIMEOUT_MILLISECONDS = 30_000
LOCK_TIMEOUT_MILLISECONDS = 10_000
"""How long a statement waits for one lock, where the caller states no less."""
IDLE_IN_TRANSACTION_TIMEOUT_MILLISECONDS = 60_000
"""No transaction of ours waits for anything but Postgres: one that does is ended, and its locks with it."""
TRANSACTION_TIMEOUT_MILLISECONDS = 300_000
"""The longest transactions are claims: eight statements at most."""
_TRANSACTION_TIMEOUT, _TRANSACTION_TIMEOUT_SINCE = "transaction_timeout", 17_00_00

# Timeouts of a role for its people, say, must end no statement of ours, and where it has none, ours still end.
_TIMEOUTS = {
    "statement_timeout": str(STATEMENT_TIMEOUT_MILLISECONDS),
    "lock_timeout": str(LOCK_TIMEOUT_MILLISECONDS),
    "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_TIMEOUT_MILLISECONDS),
}
# What values look like. psycopg reads timestamps in ISO form alone, and some time zones not at all.
_FORMATS = {
    "DateStyle": "ISO",
    "TimeZone": "UTC",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
}
# We read no messages. A trigger that raises a hundred thousand notices would otherwise send them all to us.
_MESSAGES = {"client_min_messages": "error"}
# "off" would turn each policy into an error. A policy that hides rows is refused at the start
# (`shared/schema/footing.py`).
_ROWS = {"row_security": "on"}
# What is prepared is planned once: that its plans are good for any parameters is tested (tests/plans). Left to itself
# Postgres plans those with arrays each time, in more time than they then take. JIT would compile for longer still.
# A bitmap scan collects all matching entries of an index and marks none as dead; tables like these have, between
# two vacuums, dozens of dead entries per live one (133 thousand for 4 thousand, seen in a busy claim).
# The others are Postgres' own defaults. A role that has one of them off, to try something, must not have claims read
# all runs.
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
# A claim that a server crash undoes while its message is in Redis would be claimed again. Not sent if a
# session has more than "off": "remote_apply", say, is an operator's choice.
_DURABLE = {"synchronous_commit": "on"}


def settings(server_version: int, *, durable: bool = False) -> Mapping[str, str]:
    """Return what a transaction of ours relies on, for a server of this version (`170004`, say).

    With `durable`, also that a commit is on disk before it is answered.
    """
    found = {**_TIMEOUTS, **_FORMATS, **_MESSAGES, **_ROWS, **_PLANS, **(_DURABLE if durable else {})}
    if server_version >= _TRANSACTION_TIMEOUT_SINCE:
        found[_TRANSACTION_TIMEOUT] = str(TRANSACTION_TIMEOUT_MILLISECONDS)
    return MappingProxyType(found)


def begin(server_version: int, *, durable: bool = False) -> str:
    """Return the message that begins a transaction: several statements, one round trip.

    Not READ WRITE: a server that takes no writes is found out by the first one.
    """
    return "; ".join(
        ["BEGIN ISOLATION LEVEL READ COMMITTED, NOT DEFERRABLE", set_local(server_version, durable=durable)]
    )


def set_local(server_version: int, *, durable: bool = False) -> str:
    """Return the statements for the start of a transaction that the caller began."""
    found = settings(server_version, durable=durable)
    statements = [f"SET LOCAL {name} = '{value}'" for name, value in found.items()]
    if _TRANSACTION_TIMEOUT in found:
        # The timer of this transaction runs by now, and only 0 stops it: a longer time is for the next one.
        statements.insert(0, f"SET LOCAL {_TRANSACTION_TIMEOUT} = 0")
    return "; ".join(statements)


def set_session(server_version: int, **instead: int) -> str:
    """Return the statements that prepare a connection which is a session of its own.

    `instead` has other values for some of the settings. Plans are left alone: such connections do other work.
    """
    return "; ".join(f"SET {name} = '{value}'" for name, value in _of_a_session(server_version, instead).items())


def _of_a_session(server_version: int, instead: Mapping[str, int]) -> dict[str, str]:
    found = {**_TIMEOUTS, **_FORMATS, **_MESSAGES, **_ROWS}
    found["default_transaction_isolation"] = "read committed"
    found["default_transaction_deferrable"] = "off"
    if server_version >= _TRANSACTION_TIMEOUT_SINCE:
        found[_TRANSACTION_TIMEOUT] = "0"
    return {**found, **{name: str(value) for name, value in instead.items()}}
