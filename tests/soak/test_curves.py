"""A leak is found below any noise that hides it from the eye; what is flat is not called a leak."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.soak.curves import MOST_POINTS, Bound, Curve, judge, slope

_BOUND = Bound("MB", share=0.05, floor=10.0)
_SECONDS, _WARM_UP = 3600, 1080.0


def _curve(value: Callable[[float], float], bound: Bound = _BOUND) -> Curve:
    return Curve("test", bound, [(float(at), value(at)) for at in range(0, _SECONDS, 5)])


def _noise(seed: int, width: float) -> Callable[[float], float]:
    rng = random.Random(seed)
    return lambda _: rng.uniform(-width, width)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("per_hour", [40.0, 100.0, 500.0])
def test_leak_below_noise_is_found(seed: int, per_hour: float) -> None:
    noise = _noise(seed, 30.0)
    verdict = judge(_curve(lambda at: 200 + per_hour * at / 3600 + noise(at)), _WARM_UP)
    assert not verdict.flat
    assert verdict.growth == pytest.approx(per_hour * 0.7, abs=8)


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_flat(seed: int) -> None:
    noise = _noise(seed, 50.0)
    assert judge(_curve(lambda at: 200 + noise(at)), _WARM_UP).flat


@pytest.mark.parametrize("at_seconds", [1500, 3500])
def test_single_peak_is_no_leak(at_seconds: float) -> None:
    assert judge(_curve(lambda at: 5000.0 if at == at_seconds else 200.0), _WARM_UP).flat


def test_saw_teeth_of_vacuum_are_flat() -> None:
    assert judge(_curve(lambda at: 1000 * (at % 60)), _WARM_UP).flat


def test_warm_up_does_not_count() -> None:
    assert judge(_curve(lambda at: min(at, 1000.0)), _WARM_UP).flat
    assert not judge(_curve(lambda at: min(at, 2000.0)), _WARM_UP).flat


def test_curve_with_a_limit_is_judged_by_its_highest_value() -> None:
    limit = Bound("s", most=30.0)
    assert judge(_curve(lambda at: at / 200, limit), _WARM_UP).flat
    assert not judge(_curve(lambda at: 31.0 if at == 2000 else 0.0, limit), _WARM_UP).flat


def test_slope_of_more_points_than_are_compared_is_that_of_all() -> None:
    assert slope([(float(at), 3.0 * at) for at in range(MOST_POINTS + 1)]) == pytest.approx(3.0)


def test_curve_with_few_points_has_no_verdict() -> None:
    with pytest.raises(ValueError, match="has 1 points after 1080 s; 10 are needed"):
        judge(Curve("test", _BOUND, [(2000.0, 1.0)]), _WARM_UP)
