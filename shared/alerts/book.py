"""The tables of alerts, in which one process at a time decides what is sent. All methods raise `DatabaseError`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Engine

from orcheo_dispatch.shared.alerts import statements as sql
from orcheo_dispatch.shared.alerts.messages import Key, link_of
from orcheo_dispatch.shared.alerts.readings import Facts
from orcheo_dispatch.shared.alerts.rules import BY_NAME, Rule
from orcheo_dispatch.shared.database.connections import in_transaction, transaction
from orcheo_dispatch.shared.ledger.model import ProcessKind

LEASE_SECONDS = 45.0
"""How long a teller that was killed keeps all others from taking over."""
PATIENCE_SECONDS = {ProcessKind.DISPATCHER: 0.0, ProcessKind.WORKER: 30.0}
"""How much longer a worker waits: a dispatcher that was restarted comes first."""
SENDING_SECONDS = 300.0
"""Longer than all attempts for a message take."""
RETRY_SECONDS = 60.0
GAP_SECONDS = 45.0
"""A condition that nobody found true for longer than this had ended, if no message was sent."""
_RETENTION_SECONDS = 2_592_000.0
_TIMEOUT_MILLISECONDS = 3000


@dataclass(frozen=True, slots=True)
class Due:
    """A message that this process has claimed and is to send. `seconds`: for how long the condition was true."""

    name: str
    subject: str
    value: float
    resolved: bool
    again: bool
    seconds: float

    @property
    def key(self) -> Key:
        """Return its key."""
        return Key(self.name, self.subject, self.resolved)


@dataclass(frozen=True, slots=True)
class OpenAlert:
    """An alert whose condition is true, or ended a moment ago."""

    name: str
    subject: str
    severity: str
    state: str
    value: float
    since: datetime
    seconds: float
    told_at: datetime | None
    link: str

    def as_json(self) -> dict[str, Any]:
        """Return it with stable names."""
        return asdict(self)


def open_alerts(engine: Engine, link: str, *, limit: int = 1000) -> list[OpenAlert]:
    """Return the alerts whose conditions are true, or ended a moment ago, the oldest first. Raises `DatabaseError`."""
    with transaction(engine, read_only=True) as connection:
        rows = connection.execute(sql.ALERTS, {"gap": GAP_SECONDS, "limit": limit}).mappings().all()
    return [
        OpenAlert(**row, severity=BY_NAME[row["name"]].severity.value, link=link_of(row["name"], link))
        for row in rows
        # A later release may have alerts that this one does not know.
        if row["name"] in BY_NAME
    ]


class Book:
    """What one process reads and writes."""

    def __init__(self, engine: Engine, *, process_id: UUID, kind: ProcessKind) -> None:
        self._engine = engine
        self._id = str(process_id)
        self._kind = kind

    def lead(self) -> bool:
        """Become or remain the teller; return whether this process is."""
        parameters = {
            "id": self._id,
            "kind": self._kind.value,
            "lease": LEASE_SECONDS,
            "seconds": PATIENCE_SECONDS[self._kind],
        }
        return bool(self._run(sql.ALERT_LEAD, parameters, scalar=True))

    def leave(self) -> None:
        """Stop being the teller."""
        self._run(sql.ALERT_LEAVE, {"id": self._id})

    def facts(self) -> Facts:
        """Return what the teller reads from the database itself."""
        if self._kind is not ProcessKind.DISPATCHER:
            return Facts(dispatchers=self._run(sql.ALERT_DISPATCHERS, {}, scalar=True))
        (runs,) = self._run(sql.ALERT_FAILING, {})
        rows = self._run(sql.ALERT_RESTARTS, {})
        return Facts(runs["ended"], runs["failed"], {row["subject"]: row["starts"] for row in rows})

    def seen(self, found: Mapping[tuple[str, str], float]) -> None:
        """Record that these conditions are true, by name and subject."""
        if found:
            names, subjects = zip(*found, strict=True)
            parameters = {
                "names": list(names),
                "subjects": list(subjects),
                "numbers": [float(value) for value in found.values()],
            }
            self._run(sql.ALERT_SEEN, {**parameters, "gap": GAP_SECONDS})

    def keep(self, names: Collection[str]) -> None:
        """Keep these alerts open: whether their conditions are true is unknown."""
        if names:
            self._run(sql.ALERT_KEEP, {"names": list(names)})

    def claim(self, rules: Sequence[Rule], *, repeat: float, calm: float, may_resolve: bool) -> list[Due]:
        """Claim and return the messages of these rules that are due."""
        parameters = {
            "id": self._id,
            "names": [rule.name for rule in rules],
            "holds": [float(rule.hold) for rule in rules],
            "gap": GAP_SECONDS,
            "calm": calm,
            "repeat": repeat,
            "may_resolve": may_resolve,
            "lease": SENDING_SECONDS,
        }
        return [Due(**row) for row in self._run(sql.ALERT_CLAIM, parameters)]

    def record(self, key: Key, *, delivered: bool) -> None:
        """Record that a message was delivered, or that it was not and is due again later."""
        parameters: dict[str, Any] = {"id": self._id, "name": key.name, "subject": key.subject}
        if delivered:
            self._run(sql.ALERT_TOLD, {**parameters, "resolved": key.resolved})
        else:
            self._run(sql.ALERT_UNSENT, {**parameters, "seconds": RETRY_SECONDS})

    def prune(self) -> None:
        """Delete what has not been true for 30 days."""
        self._run(sql.ALERT_PRUNE, {"retention": _RETENTION_SECONDS})

    def _run(self, statement: Any, parameters: dict[str, Any], *, scalar: bool = False) -> Any:
        def work(connection: Any) -> Any:
            result = connection.execute(statement, parameters)
            if scalar:
                return result.scalar()
            return [dict(row) for row in result.mappings()] if result.returns_rows else None

        return in_transaction(self._engine, work, timeout_milliseconds=_TIMEOUT_MILLISECONDS)
