"""The statements of alerts do what models in Python do, for alerts in any combination of states.

Times are whole seconds before now(), or after it where the name says so; 0 is now().
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any

import pytest
from sqlalchemy import Connection, text

from orcheo_dispatch.shared.alerts.statements import (
    ALERT_CLAIM,
    ALERT_KEEP,
    ALERT_LEAD,
    ALERT_LEAVE,
    ALERT_PRUNE,
    ALERT_SEEN,
    ALERT_TOLD,
    ALERT_UNSENT,
    ALERTS,
)
from tests.support.database.comparing import RolledBack
from tests.support.database.run_states import OTHER, US

_INSERT = text("""
INSERT INTO orcheo_dispatch.alert (name, subject, value, since, seen_at, told_at, resolved_at, by, sending_until)
SELECT x.name, x.subject, x.value, now() - make_interval(secs => x.since), now() - make_interval(secs => x.seen),
       now() - make_interval(secs => x.told), now() - make_interval(secs => x.resolved), x.by,
       now() + make_interval(secs => x.sending_for)
  FROM jsonb_to_recordset(CAST(:rows AS jsonb))
       AS x(name text, subject text, value float8, since float8, seen float8, told float8, resolved float8, by uuid,
            sending_for float8)
""")
_SELECT = text("""
SELECT a.name, a.subject, a.value, EXTRACT(epoch FROM now() - a.since)::integer AS since,
       EXTRACT(epoch FROM now() - a.seen_at)::integer AS seen, EXTRACT(epoch FROM now() - a.told_at)::integer AS told,
       EXTRACT(epoch FROM now() - a.resolved_at)::integer AS resolved, a.by::text AS by,
       EXTRACT(epoch FROM a.sending_until - now())::integer AS sending_for
  FROM orcheo_dispatch.alert AS a
""")
_TELLER = text("""
UPDATE orcheo_dispatch.teller SET by = CAST(:by AS uuid), kind = :kind, until = now() + make_interval(secs => :left)
""")
_TELLER_NOW = text("""
SELECT by::text AS by, kind, EXTRACT(epoch FROM until - now())::integer AS left_for FROM orcheo_dispatch.teller
""")
_NAMES = ("a", "b", "c")
_AGES = (5, 50, 500)
_LEASE = 30


@dataclass(frozen=True)
class Alert:
    """A row of alerts."""

    name: str
    subject: str
    value: float
    since: int
    seen: int
    told: int | None
    resolved: int | None
    by: str | None
    sending_for: int | None


def _at_random(random: Random, name: str, subject: str) -> Alert:
    return Alert(
        *(name, subject, float(random.randint(0, 9))),
        since=random.choice(_AGES),
        seen=random.choice(_AGES),
        told=random.choice((None, *_AGES)),
        resolved=random.choice((None, None, None, *_AGES)),
        by=random.choice((None, US, OTHER)),
        sending_for=random.choice((None, None, -10, 10)),
    )


def _table(random: Random) -> list[Alert]:
    return [_at_random(random, name, f"s{n}") for name in _NAMES for n in range(8) if random.random() < 0.8]


def _write(connection: Connection, alerts: list[Alert]) -> None:
    connection.execute(_INSERT, {"rows": json.dumps([asdict(each) for each in alerts])})


def _read(connection: Connection) -> dict[tuple[str, str], Alert]:
    return {(row.name, row.subject): Alert(*row) for row in connection.execute(_SELECT)}


def _by_key(alerts: list[Alert]) -> dict[tuple[str, str], Alert]:
    return {(each.name, each.subject): each for each in alerts}


@pytest.mark.parametrize("seed", range(60))
def test_due_messages_are_claimed_as_the_model_says(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    alerts, names = _table(random), random.sample(_NAMES, random.randint(1, 3))
    holds = {name: random.choice((0, 5, 20, 100)) for name in names}
    terms = {each: random.choice((1, 5, 20, 100)) for each in ("gap", "calm", "repeat")}
    may_resolve = random.random() < 0.7

    def due(alert: Alert) -> bool:
        if alert.name not in holds or alert.resolved is not None or (alert.sending_for or -1) >= 0:
            return False
        if alert.told is None:
            return alert.since >= holds[alert.name] and alert.seen <= terms["gap"]
        if alert.seen > terms["calm"]:
            return may_resolve
        return alert.told > terms["repeat"] and alert.seen <= terms["gap"]

    def message(alert: Alert) -> tuple[object, ...]:
        resolved = alert.told is not None and alert.seen > terms["calm"]
        seconds = float(alert.since - alert.seen if resolved else alert.since)
        return (alert.name, alert.subject, alert.value, resolved, alert.told is not None, seconds)

    parameters = {**terms, "names": names, "holds": [*holds.values()], "may_resolve": may_resolve, "id": US}
    with rolled_back() as connection:
        _write(connection, alerts)
        found = {tuple(row) for row in connection.execute(ALERT_CLAIM, {**parameters, "lease": _LEASE})}
        assert found == {message(alert) for alert in alerts if due(alert)}
        assert _read(connection) == _by_key(
            [replace(alert, by=US, sending_for=_LEASE) if due(alert) else alert for alert in alerts]
        )


@pytest.mark.parametrize("seed", range(20))
def test_conditions_are_noted_as_the_model_says(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    alerts, gap = _table(random), random.choice((1, 20, 100))
    known = _by_key(alerts)
    seen = {key: float(random.randint(10, 19)) for key in [*known, ("a", "new"), ("d", "")] if random.random() < 0.6}

    def noted(key: tuple[str, str]) -> Alert:
        if (alert := known.get(key)) is None:
            return Alert(*key, seen[key], 0, 0, None, None, None, None)
        anew = alert.resolved is not None or (alert.told is None and alert.seen > gap)
        return replace(
            alert,
            value=seen[key],
            seen=0,
            resolved=None,
            since=0 if anew else alert.since,
            told=alert.told if alert.resolved is None else None,
        )

    names, subjects = [name for name, _ in seen], [subject for _, subject in seen]
    parameters = {"names": names, "subjects": subjects, "numbers": [*seen.values()], "gap": gap}
    with rolled_back() as connection:
        _write(connection, alerts)
        connection.execute(ALERT_SEEN, parameters)
        assert _read(connection) == {**known, **{key: noted(key) for key in seen}}


@pytest.mark.parametrize("seed", range(10))
def test_what_cannot_be_confirmed_stays_open_and_old_alerts_go(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    alerts, names = _table(random), random.sample(_NAMES, 2)

    def kept(alert: Alert) -> Alert:
        keeps = alert.name in names and alert.resolved is None and alert.told is not None
        return replace(alert, seen=0) if keeps else alert

    with rolled_back() as connection:
        _write(connection, alerts)
        connection.execute(ALERT_KEEP, {"names": names})
        assert _read(connection) == _by_key([kept(alert) for alert in alerts])
        connection.execute(ALERT_PRUNE, {"retention": 20})
        assert _read(connection) == _by_key([kept(alert) for alert in alerts if kept(alert).seen <= 20])


@pytest.mark.parametrize("resolved", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_delivery_is_noted_by_the_process_that_sent(rolled_back: RolledBack, seed: int, resolved: bool) -> None:
    random = Random(seed)
    alerts = _table(random)
    key = (random.choice(_NAMES), "s0")
    known = _by_key([*alerts, _at_random(random, *key)])

    def ours(alert: Alert) -> bool:
        return (alert.name, alert.subject) == key and alert.by == US and alert.resolved is None

    def told(alert: Alert) -> Alert:
        told, end = (alert.told, 0) if resolved else (0, None)
        return replace(alert, sending_for=None, told=told, resolved=end) if ours(alert) else alert

    def unsent(alert: Alert) -> Alert:
        return replace(alert, sending_for=77) if ours(alert) else alert

    whose = {"name": key[0], "subject": key[1], "id": US}
    for statement, extra, model in (
        (ALERT_TOLD, {"resolved": resolved}, told),
        (ALERT_UNSENT, {"seconds": 77}, unsent),
    ):
        with rolled_back() as connection:
            _write(connection, [*known.values()])
            connection.execute(statement, {**whose, **extra})
            assert _read(connection) == {each: model(alert) for each, alert in known.items()}


@pytest.mark.parametrize("seed", range(10))
def test_alerts_are_listed_as_the_model_says(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    alerts, gap = _table(random), random.choice((1, 20, 100))

    def listed(alert: Alert) -> tuple[str, str, str, float] | None:
        if alert.resolved is not None or (alert.told is None and alert.seen > gap):
            return None
        state = "pending" if alert.told is None else "recovering" if alert.seen > gap else "firing"
        return alert.name, alert.subject, state, float(alert.since)

    expected = sorted(filter(None, map(listed, alerts)), key=lambda each: (-each[3], each[:2]))
    with rolled_back() as connection:
        _write(connection, alerts)
        rows = connection.execute(ALERTS, {"gap": gap, "limit": 1000})
        assert [(row.name, row.subject, row.state, row.seconds) for row in rows] == expected


@pytest.mark.parametrize("left", [-100, -10, 10])
@pytest.mark.parametrize("kind", ["worker", "dispatcher"])
@pytest.mark.parametrize("wanted", ["worker", "dispatcher"])
@pytest.mark.parametrize("by", [US, OTHER, None])
def test_teller_is_taken_over_as_the_model_says(
    rolled_back: RolledBack, by: str | None, wanted: str, kind: str, left: int
) -> None:
    takes = by == US or left < -20 or (kind, wanted) == ("worker", "dispatcher")
    given: dict[str, Any] = {"id": US, "kind": wanted, "lease": _LEASE, "seconds": 20}
    with rolled_back() as connection:
        connection.execute(_TELLER, {"by": by, "kind": kind, "left": left})
        assert connection.scalar(ALERT_LEAD, given) is (True if takes else None)
        after = (US, wanted, _LEASE) if takes else (by, kind, left)
        assert tuple(connection.execute(_TELLER_NOW).one()) == after
        connection.execute(ALERT_LEAVE, {"id": OTHER})
        assert tuple(connection.execute(_TELLER_NOW).one()) == ((*after[:2], 0) if after[0] == OTHER else after)
