"""What the benchmark makes of its numbers."""

from __future__ import annotations

import pytest

from tests.bench import report
from tests.bench.__main__ import main
from tests.bench.result import Curve, Measurement, Report, Series, Spread, Target, ratios


def test_spread_is_median_least_and_most() -> None:
    assert Spread.of([3.0, 1.0, 8.0, 2.0]) == Spread(2.5, 1.0, 8.0)


def test_ratios_are_taken_pair_by_pair() -> None:
    # The machine was slow in the second round, for both.
    assert ratios([8.0, 2.0, 12.0], [4.0, 1.0, 3.0]) == Spread(2.0, 2.0, 4.0)


def test_ratios_refuse_rounds_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("median", "at_least", "met", "missed_by"),
    [(4.0, True, True, 0.0), (3.0, True, False, 0.25), (4.0, False, True, 0.0), (5.0, False, False, 0.25)],
)
def test_target_is_decided_by_the_median(median: float, at_least: bool, met: bool, missed_by: float) -> None:
    target = Target("", Spread(median, 0.0, 100.0), 4.0, "times", at_least)
    assert target.met == met
    assert target.missed_by == pytest.approx(missed_by)


def test_report_survives_json() -> None:
    assert Report.from_json(_REPORT.to_json()) == _REPORT


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"measurements": [{"name": "noop"}]}'])
def test_report_refuses_what_is_none(text: str) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Report.from_json(text)


def test_values_are_found_by_system_metric_and_place() -> None:
    (measurement,) = _REPORT.measurements
    assert measurement.values("ours", "rate", at=10.0) == (1.0, 2.0)
    with pytest.raises(KeyError):
        measurement.values("ours", "rate")


def test_summary_says_which_targets_are_met_and_by_how_much_others_are_missed() -> None:
    summary = report.summary(_REPORT)
    assert "noop: 3 times theirs: 3.5 times (3 to 4), met" in summary
    assert "noop: a third of theirs: 0.5 of it (0.4 to 0.6), missed by 50%" in summary


def test_page_gets_the_tables_between_its_markers_and_keeps_the_rest() -> None:
    page = report.page("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n", _REPORT)
    assert page.startswith("before\n<!-- bench -->\n")
    assert page.endswith("\n<!-- /bench -->\nafter\n")
    assert "old" not in page
    assert "| ours, 10.0 | 1.5 (1 to 2) |" in page
    assert "| noop | a third of theirs | 0.5 of it (0.4 to 0.6) | **missed by 50%** |" in page
    assert "![Rates](images/bench-noop.png)" in page


def test_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="markers"):
        report.page("nothing\n", _REPORT)


@pytest.mark.parametrize("arguments", [["--only", "speed"], ["--rounds", "0"], ["--from", "/nowhere"]])
def test_wrong_usage_ends_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = int(str(ended.code))
    assert code == 2
    assert "Traceback" not in capsys.readouterr().err


_REPORT = Report(
    "2026-01-01T00:00:00+00:00",
    {"Python": "3.12"},
    {"cores": "2"},
    (
        Measurement(
            "noop",
            "No-op runs",
            (Series("ours", "rate", "runs/s", (1.0, 2.0), at=10.0), Series("theirs", "rate", "runs/s", (0.5, 0.5))),
            (
                Target("3 times theirs", Spread(3.5, 3.0, 4.0), 3.0, "times", at_least=True),
                Target("a third of theirs", Spread(0.5, 0.4, 0.6), 1 / 3, "of it", at_least=False),
            ),
            (Curve("noop", "Rates", "rate", "pending runs", systems=("ours",), log_x=True),),
            ("A note.",),
            12.0,
        ),
    ),
)
