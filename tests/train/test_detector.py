"""When training ends, what of it ships, and what is drawn of it."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.train import curves, detector
from stages.train.curves import Outcome
from stages.train.detector import Limits, Point
from stages.train.training import rate

LIMITS = Limits(gap=0.1, rise=0.01)


def points(*losses: tuple[float | None, float | None]) -> tuple[Point, ...]:
    """By step the loss as trained and as it would ship."""
    return tuple(
        Point(step=10 * n, trained_loss=trained, shipped_loss=shipped, trained_match=0.5, shipped_match=0.25)
        for n, (trained, shipped) in enumerate(losses)
    )


def test_a_run_whose_two_losses_fall_together_goes_on():
    assert detector.why_stop(points((1.1, 1.0), (0.9, 0.8), (0.5, 0.45)), LIMITS) is None


def test_a_shipped_loss_above_where_it_began_ends_it_and_says_both_numbers():
    said = detector.why_stop(points((1.1, 1.0), (0.95, 1.0101)), LIMITS)
    assert said is not None
    assert "step 10" in said
    assert "1.0101" in said
    assert "1.0000" in said


def test_up_to_the_tolerance_it_may_rise():
    assert detector.why_stop(points((1.1, 1.0), (0.95, 1.0099)), LIMITS) is None


def test_a_gap_beyond_the_limit_ends_it_though_both_losses_fall():
    said = detector.why_stop(points((1.1, 1.0), (0.5, 0.61)), LIMITS)
    assert said is not None
    assert "limit_gap" in said


def test_before_any_step_nothing_ends_it_however_far_apart_they_are():
    assert detector.why_stop(points((0.1, 1.0)), LIMITS) is None


@pytest.mark.parametrize("losses", [((1.0, 1.0), (0.5, None)), ((1.0, 1.0), (None, 0.5)), ((1.0, None),)])
def test_a_loss_that_is_no_finite_number_ends_it(losses):
    assert "finite" in str(detector.why_stop(points(*losses), LIMITS))


@given(
    losses=st.lists(st.tuples(st.none() | st.floats(0, 10), st.none() | st.floats(0, 10)), min_size=1, max_size=12),
    start=st.floats(0, 10),
)
def test_what_ships_is_never_worse_than_the_start(losses, start):
    measured = points((start, start), *losses)
    shipped = detector.best(measured).shipped_loss
    assert shipped is not None
    assert shipped <= start


@given(steps=st.integers(1, 300), warmup=st.floats(0, 0.9))
def test_the_rate_rises_to_its_height_and_falls_to_nothing(steps, warmup):
    rates = [rate(step, steps, warmup) for step in range(steps)]
    top = rates.index(max(rates))
    assert all(0 < each <= 1 for each in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rate(steps, steps, warmup) < 1e-9


@given(
    losses=st.lists(st.tuples(st.none() | st.floats(0, 1e6), st.none() | st.floats(0, 1e6)), min_size=1, max_size=5),
    stopped=st.none() | st.text(st.characters(codec="ascii", categories=["L", "P", "S"])),
)
@settings(max_examples=30)
def test_any_run_can_be_drawn_and_recorded(losses, stopped):
    outcome = Outcome(
        planned=50, losses=(None, *(loss for loss, _ in losses)), points=points(*losses), limits=LIMITS, stopped=stopped
    )
    made = curves.attachments(outcome, {"experts": "nf4", "mix": "m", "reference": "r"})
    record = json.loads(made[curves.CURVES])
    assert record["stopped"] == stopped
    assert [each["step"] for each in record["points"]] == [each.step for each in outcome.points]
    drawn = ElementTree.fromstring(made[curves.PICTURE])  # noqa: S314 - ours
    assert drawn.tag.endswith("svg")
    assert not {"nan", "inf", "None"} & set(re.split(r"[\s,\"]", made[curves.PICTURE].decode()))
