"""Connect with the answers: find out whether this is Orcheo's database, and a Redis that can be used."""

from __future__ import annotations

from collections.abc import Mapping

from orcheo_dispatch.ops.adoption.env_advice import settings_of
from orcheo_dispatch.ops.host.check import look_at_database
from orcheo_dispatch.ops.host.check_broker import look_at_broker
from orcheo_dispatch.ops.host.findings import Finding, Grade
from orcheo_dispatch.ops.setup.variables import DSN, SLOTS
from orcheo_dispatch.shared.logs.secret_names import keep_secrets_of

# What else `check` says of the database, such as our schema, is the subject of the steps that follow `init`.
_OF_DATABASE = frozenset({"database", "Orcheo's tables"})
_OF_BROKER = frozenset({"broker", "maxmemory-policy", "use of Redis"})
_OF_SLOTS = frozenset({"server of the run slots"})


def prove(name: str, answers: Mapping[str, str]) -> list[Finding]:
    """Connect with the address `name`, and return what was found; findings are never raised as errors.

    `answers` has a value for each address.
    """
    settings = settings_of(answers)
    keep_secrets_of(settings)
    if name == DSN:
        return [each for each in look_at_database(settings) if each.what in _OF_DATABASE]
    wanted = _OF_SLOTS if name == SLOTS else _OF_BROKER
    return [each for each in look_at_broker(settings) if each.what in wanted]


def wrong(findings: list[Finding]) -> list[Finding]:
    """Return the findings with which no process would work."""
    return [each for each in findings if each.grade is Grade.WRONG]
