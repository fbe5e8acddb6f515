"""Points in time as people give and read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from orcheo_dispatch.ops.runs.moments import Moment, ago, duration, parse_moment
from orcheo_dispatch.shared.errors import SettingsError


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("90s", 90), ("15m", 900), ("15min", 900), ("1.5h", 5400), (" 3 D ", 259_200), ("1w", 604_800)],
)
def test_span_is_so_many_seconds_ago(given: str, seconds: float) -> None:
    assert parse_moment("--since", given) == Moment(seconds_ago=seconds)


def test_time_is_utc_unless_it_says_otherwise() -> None:
    assert parse_moment("--since", "2026-11-23T12:00").at == datetime(2026, 11, 23, 12, tzinfo=UTC)
    tokyo = timezone(timedelta(hours=9))
    assert parse_moment("--since", "2026-11-23T12:00+09:00").at == datetime(2026, 11, 23, 12, tzinfo=tokyo)


@pytest.mark.parametrize("given", ["", "soon", "2", "h", "-2h", "2 years", "99999999w", "2026-13-01"])
def test_what_is_no_time_is_refused_with_what_is_taken(given: str) -> None:
    with pytest.raises(SettingsError, match=r"--since=.* is invalid: expected a (span|time)"):
        parse_moment("--since", given)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0123, "12 ms"), (1.25, "1.2 s"), (61, "1 min 1 s"), (7320, "2 h 2 min"), (90_000, "1 d 1 h")],
)
def test_durations_are_shown_as_people_read_them(value: float | None, shown: str) -> None:
    assert duration(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.4, "just now"), (42.3, "42 s ago"), (200, "3 min ago"), (7300, "2 h ago"), (200_000, "2 d ago")],
)
def test_ages_are_shown_in_one_unit(value: float | None, shown: str) -> None:
    assert ago(value) == shown
