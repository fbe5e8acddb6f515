"""The alerts that we send are the rules of Prometheus, and say what docs/alerts.md says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from orcheo_dispatch.shared.alerts.messages import Origin, duration, link_of
from orcheo_dispatch.shared.alerts.outage import Outage
from orcheo_dispatch.shared.alerts.readings import Facts, Readings, Series
from orcheo_dispatch.shared.alerts.rules import BY_NAME, CAUSED_BY, DATABASE, NOT_SENT, RULES, Rule
from orcheo_dispatch.shared.logs.secret_names import secrets_of_environment
from orcheo_dispatch.shared.text.urls import secrets_of_url, split_urls

ROOT = Path(__file__).parents[2]
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_ORIGIN = Origin("db1", "docs/runbook.md")


def _of_prometheus() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load((ROOT / "ops/prometheus/alerts.yml").read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def _seconds(text: str) -> int:
    return int(text[:-1]) * _SECONDS[text[-1]] if text else 0


def test_each_rule_is_sent_or_has_a_reason_why_not() -> None:
    assert {*BY_NAME, *NOT_SENT} == set(_of_prometheus())
    assert not set(BY_NAME) & set(NOT_SENT)
    assert {*CAUSED_BY, *CAUSED_BY.values()} <= set(BY_NAME)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_severity_and_duration_are_those_of_the_rule(rule: Rule) -> None:
    theirs = _of_prometheus()[rule.name]
    assert rule.severity == theirs["labels"]["severity"]
    assert rule.hold == _seconds(theirs.get("for", ""))


def _samples(**values: float) -> dict[Series, float]:
    found: dict[Series, float] = {}
    for key, value in values.items():
        name, *labels = key.split("__")
        pairs = zip(labels[::2], labels[1::2], strict=True)
        found["orcheo_dispatch_" + name, frozenset(pairs)] = value
    return found


# Samples at the limit, at which the condition is false, and beyond it; after a start, at which all counters are 0.
_LIMITS: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "OrcheoRunsPendingTooLong": ({"pending_late_runs": 0}, {"pending_late_runs": 1}),
    "OrcheoBacklogDeep": ({"pending_runs": 1000}, {"pending_runs": 1001}),
    "OrcheoQueueFull": (
        {"queue_messages": 179, "queue_limit_messages": 200},
        {"queue_messages": 180, "queue_limit_messages": 200},
    ),
    "OrcheoRunsStuck": ({"stuck_runs": 0}, {"stuck_runs": 1}),
    "OrcheoRunsLost": (
        {"runs_reaped_total__outcome__lost": 0},
        {"runs_reaped_total__outcome__lost": 0, "runs_reaped_total__outcome__requeued": 1},
    ),
    "OrcheoRunsUnclaimed": ({"unclaimed_runs": 0}, {"unclaimed_runs": 1}),
    "OrcheoRunsBegunElsewhere": ({"begun_elsewhere_runs": 0}, {"begun_elsewhere_runs": 1}),
    "OrcheoSlotsDue": ({"due_slots": 0}, {"due_slots": 1}),
    "OrcheoNoWorker": ({"alive_processes__kind__worker": 1}, {"alive_processes__kind__worker": 0}),
    "OrcheoWorkersCrash": ({"vanished_processes__kind__worker": 0}, {"vanished_processes__kind__worker": 1}),
    "OrcheoPollStalled": ({"alive_processes__kind__dispatcher": 1}, {"alive_processes__kind__dispatcher": 0}),
    "OrcheoRunsRefused": ({"refused_runs__step__claim": 0}, {"refused_runs__step__claim": 1}),
    "OrcheoBeatSilent": ({"beat_silent": 0}, {"beat_silent": 1}),
    "OrcheoCronSilent": (
        {"cron_age_seconds": 300, "cron_interval_seconds": 60},
        {"cron_age_seconds": 301, "cron_interval_seconds": 60},
    ),
    "OrcheoLoopBlocked": ({"loop_lag_seconds": 5}, {"loop_lag_seconds": 6}),
    "OrcheoConsumerStalls": ({"consumer_stalls_total": 0}, {"consumer_stalls_total": 1}),
    "OrcheoMessagesMalformed": (
        {"messages_total__result__malformed": 0},
        {"messages_total__result__malformed": 1},
    ),
    DATABASE: ({"database_up": 1}, {"database_up": 0}),
    "OrcheoBrokerUnavailable": ({"broker_up": 1}, {"broker_up": 0}),
    "OrcheoDatabaseErrors": ({"database_errors_total": 0}, {"database_errors_total": 1}),
    "OrcheoBrokerErrors": ({"broker_errors_total": 0}, {"broker_errors_total": 1}),
    "OrcheoTransactionOld": (
        {"oldest_transaction_age_transactions": 500_000},
        {"oldest_transaction_age_transactions": 500_001},
    ),
}
_OF_THE_LEDGER = {"OrcheoRunsFail", "OrcheoProcessRestarts", "OrcheoNoDispatcher"}
# A dispatcher that polls is recorded as alive: without a poll that succeeds, none is.
_READ_OTHERWISE = {"OrcheoPollStalled"}


def test_each_condition_is_tried_or_reads_the_ledger() -> None:
    assert set(_LIMITS) | _OF_THE_LEDGER | {"OrcheoPollsSlow"} == set(BY_NAME)


@pytest.mark.parametrize("name", _LIMITS)
def test_condition_is_that_of_the_rule(name: str) -> None:
    well, ill = _LIMITS[name]
    readings = Readings(lambda: _samples(**ill))
    readings.take()
    assert BY_NAME[name].condition(readings)
    readings = Readings(lambda: _samples(**well))
    readings.take()
    assert not BY_NAME[name].condition(readings)
    expression = _of_prometheus()[name]["expr"]
    if name not in _READ_OTHERWISE:
        assert {key.split("__")[0] for key in ill} <= set(re.findall(r"orcheo_dispatch_(\w+)", expression))


def test_polls_are_slow_if_more_than_a_twentieth_takes_longer_than_a_second() -> None:
    for fast, slow in ((95, 5), (94, 6)):
        samples = _samples(poll_seconds_count=fast + slow) | {
            ("orcheo_dispatch_poll_seconds_bucket", frozenset({("le", "1.0")})): float(fast)
        }
        readings = Readings(lambda found=samples: found)  # type: ignore[misc]
        readings.take()
        assert bool(BY_NAME["OrcheoPollsSlow"].condition(readings)) is (slow > 5)


def test_runs_fail_if_more_than_half_of_them_do() -> None:
    readings = Readings(dict)
    for ended, failed, fires in ((0, 0, False), (4, 2, False), (4, 3, True)):
        readings.facts = Facts(ended, failed)
        assert bool(BY_NAME["OrcheoRunsFail"].condition(readings)) is fires


def test_growth_of_a_counter_is_forgotten_after_the_window() -> None:
    now, count = [0.0], [0.0]
    readings = Readings(lambda: _samples(consumer_stalls_total=count[0]), clock=lambda: now[0])
    rule = BY_NAME["OrcheoConsumerStalls"]
    seen = []
    for at, total in ((0, 0), (10, 1), (905, 1), (911, 1)):
        now[0], count[0] = at, total
        readings.take()
        seen.append(bool(rule.condition(readings)))
    assert seen == [False, True, True, False]


def test_outage_of_postgres_is_told_once_repeated_and_resolved() -> None:
    now = [0.0]
    outage = Outage(BY_NAME[DATABASE], repeat=3600, calm=300, clock=lambda: now[0])
    said = []
    for at, down in (
        (0, True),
        (59, True),
        (60, True),
        (70, True),
        (3660, True),
        (3700, False),
        (3961, False),
        (9000, False),
    ):
        now[0] = at
        message = outage.turn(_ORIGIN, {"": 0.0} if down else {})
        if message is not None:
            said.append((at, message.title.split("]")[0]))
            outage.record(message.key, delivered=True)
    assert said == [(60, "[critical"), (3660, "[still critical"), (3961, "[resolved")]


def test_short_outage_and_flapping_one_are_not_told() -> None:
    now = [0.0]
    outage = Outage(BY_NAME[DATABASE], repeat=3600, calm=300, clock=lambda: now[0])
    for at in range(0, 3600, 30):
        now[0] = at
        assert outage.turn(_ORIGIN, {"": 0.0} if at % 60 else {}) is None


def test_message_that_was_not_delivered_is_due_again() -> None:
    now = [0.0]
    outage = Outage(BY_NAME[DATABASE], repeat=3600, calm=300, clock=lambda: now[0])
    outage.turn(_ORIGIN, {"": 0.0})
    now[0] = 60
    message = outage.turn(_ORIGIN, {"": 0.0})
    assert message is not None
    assert outage.turn(_ORIGIN, {"": 0.0}) is None
    outage.record(message.key, delivered=False)
    assert outage.turn(_ORIGIN, {"": 0.0}) is None
    now[0] = 120
    assert outage.turn(_ORIGIN, {"": 0.0}) is not None


@pytest.mark.parametrize("name", BY_NAME)
def test_link_leads_to_a_section_of_the_runbook(name: str) -> None:
    headings = re.findall(r"^### (.+)$", (ROOT / "docs/runbook.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert link_of(name, "docs/runbook.md") in {f"docs/runbook.md#{each.lower()}" for each in headings}
    assert link_of(name, "https://x/").startswith("https://x/runbook.html#")


def test_document_says_of_each_rule_whether_it_is_sent_and_who_looks() -> None:
    page = (ROOT / "docs/alerts.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(Orcheo\w+)` \| ([^|]+) \|", page, re.MULTILINE))
    assert rows == {name: f"not sent: {NOT_SENT[name]}" for name in NOT_SENT} | {
        rule.name: rule.seer.value for rule in RULES
    }
    assert list(rows) == list(_of_prometheus())


def test_durations_have_at_most_two_units() -> None:
    seconds = (0.4, 59, 60, 725, 3600, 11_100, 86_400, 187_200)
    assert [duration(each) for each in seconds] == [
        "0 s", "59 s", "1 min", "12 min", "1 h", "3 h 5 min", "1 d", "2 d 4 h",
    ]  # fmt: skip


def test_urls_are_split_at_commas_and_spaces() -> None:
    assert split_urls("json://a/b,c  mailto://x:y@z?to=a,b ,\n slack://T/B/X,") == [
        "json://a/b,c",
        "mailto://x:y@z?to=a,b",
        "slack://T/B/X",
    ]


def test_secrets_of_urls_are_every_part_but_a_host() -> None:
    assert {"TokenNumberOne", "TokenNumberTwo"} <= set(secrets_of_url("slack://TokenNumberOne/TokenNumberTwo"))
    found = secrets_of_url("mailto://someone:p%40ss-word@mail.example.org:587/?to=person")
    assert {"someone", "p%40ss-word", "p@ss-word", "person"} <= set(found)
    assert "mail.example.org:587" not in found
    assert "localhost" not in secrets_of_url("json://localhost/hidden-path")
    assert "hidden-path" in secrets_of_environment({"ORCHEO_ALERTS_URLS": "json://localhost/hidden-path"})


def test_library_is_imported_only_if_there_are_targets() -> None:
    script = (
        "import sys\n"
        "from orcheo_dispatch.shared.alerts.targets import targets_of\n"
        "from orcheo_dispatch.shared.settings.model import Settings\n"
        "assert targets_of(Settings.load(postgres_dsn='postgresql://x')) == []\n"
        "assert 'apprise' not in sys.modules\n"
        "sys.modules['apprise'] = None\n"
        "targets_of(Settings.load(postgres_dsn='postgresql://x', alerts_urls='json://localhost/x'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (
        "SettingsError: ORCHEO_ALERTS_URLS needs the package apprise: pip install 'orcheo-dispatch[alerts]'"
        in done.stderr
    )
