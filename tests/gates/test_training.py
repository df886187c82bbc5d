"""What is said and drawn of how a candidate was trained."""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gates.errors import IntegrityError
from gates.reports import Trained, Training, picture, render
from gates.reports.curves import HEIGHT, draw, ticks
from gates.reports.training import sentence
from tests.support import reports

TRAPPED = reports.TRAPPED


def changed(**fields: Any) -> Training:
    return Training.model_validate(TRAPPED.model_dump() | fields)


def points(*losses: tuple[float | None, float | None]) -> list[dict[str, Any]]:
    """By step the loss as trained and as it would ship."""
    return [
        {"step": step, "trained_loss": trained, "shipped_loss": shipped, "trained_match": 0.5, "shipped_match": 0.25}
        for step, (trained, shipped) in enumerate(losses)
    ]


def test_of_a_run_that_was_stopped_it_is_said_when_and_why_and_which_step_ships():
    said = sentence(TRAPPED)
    assert said.startswith(
        "stopped after 400 of 1200 steps: at step 400 the loss of the model as it would ship is 1.2861"
    )
    assert "step 50 ships, with a loss of 0.8500 on held-out (0.9000 before training)" in said
    assert "2.9100 below the model as it is trained (limit_gap 0.5)" in said


def test_of_a_run_that_was_not_stopped_it_is_said_that_all_steps_were_done():
    said = sentence(changed(stopped=None, steps=1200))
    assert said.startswith("all 1200 steps were done; step 50 ships")


def test_where_no_step_was_better_than_none_it_is_said_that_the_weights_are_as_they_were():
    assert "no step was better than none, so the weights are those that it began with" in sentence(
        changed(shipped_step=0)
    )


def test_every_kind_of_report_says_how_training_ended():
    said = reports.report()
    for kind in ("json", "md", "html"):
        assert b"as it would ship is 1.2861" in render(said, kind)


def test_a_report_of_a_training_that_nothing_is_known_of_says_that():
    subject = reports.SUBJECT.model_copy(update={"training": (Trained(of="v7a.train", unread="it is not kept"),)})
    said = reports.report(subject=subject)
    assert b"**Training of v7a.train:** it is not kept" in render(said, "md")
    page = render(said, "html").decode()
    assert "It is not kept." in page
    assert "<polyline" not in page


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"points": []},
        {"points": points((1, 1), (2, 2))[::-1], "shipped_step": 1},
        {"shipped_step": 51},
        {"losses": ["much"]},
        {"steps": -1},
        {"stopped": 3},
    ],
)
def test_a_record_of_another_form_is_refused(changes: dict[str, Any]):
    data = json.dumps(TRAPPED.model_dump() | changes, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(IntegrityError):
        Training.from_bytes(data)


def test_a_record_from_before_records_stated_their_form_is_read():
    older = Training.model_validate({key: each for key, each in TRAPPED.model_dump().items() if key != "format"})
    assert b"format" not in older.to_bytes()
    assert sentence(Training.from_bytes(older.to_bytes())) == sentence(TRAPPED)


LOSSES = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@given(
    losses=st.lists(st.tuples(LOSSES, LOSSES), min_size=1, max_size=50),
    batches=st.lists(LOSSES, max_size=5) | st.just([1.5, None, 0.5] * 300),
    tolerance=st.floats(0, 1),
    stopped=st.none() | st.text(),
)
@example(losses=[(0.0, 0.0)], batches=[], tolerance=0, stopped=None)
@example(losses=[(1.7e308, 1.7e308)] * 2, batches=[1.7e308] * 900, tolerance=0, stopped="x")
@example(losses=[(None, None)], batches=[None], tolerance=0, stopped=None)
@example(losses=[(1.1, 1.1 + 1e-9)] * 2, batches=[], tolerance=0, stopped="\x00\ud800<&>")
def test_any_run_can_be_drawn_within_its_frame(losses, batches, tolerance, stopped):
    run = changed(points=points(*losses), losses=batches, shipped_step=0, tolerance=tolerance, stopped=stopped)
    drawn = draw(run)
    pairs = " ".join((drawn.batches, drawn.trained, drawn.shipped, drawn.gap)).split()
    places = [tuple(map(float, pair.split(","))) for pair in pairs] + [(mark.x, mark.y) for mark in drawn.marks]
    assert all(0 <= across <= 100 and 0 <= down <= HEIGHT for across, down in places)
    assert len(drawn.batches.split()) <= 300
    image = picture(run)
    assert Xml.fromstring(image).tag.endswith("svg")  # noqa: S314 - ours
    assert not {"nan", "inf"} & set(re.split(r"[^a-z]+", re.sub(r"<(desc|text)[^>]*>[^<]*", "", image.decode())))


@given(st.floats(1e-6, 1e12), st.floats(1.0002, 1e9))
def test_an_axis_has_numbers_to_read_in_order_and_between_its_ends(low: float, ratio: float):
    found = ticks(low, low * ratio)
    assert 2 <= len(found) <= 8
    assert found == sorted(set(found))
    assert all(low * (1 - 1e-6) <= tick <= low * ratio * (1 + 1e-6) for tick in found)
    assert len({f"{tick:.6g}" for tick in found}) == len(found)


def test_a_lower_loss_is_drawn_lower_and_a_later_step_further_right():
    drawn = draw(TRAPPED)
    trained = [mark for mark in drawn.marks if mark.kind == "trained"]
    assert [mark.y for mark in trained] == sorted(mark.y for mark in trained)
    assert [mark.x for mark in trained] == sorted(mark.x for mark in trained)
    assert (trained[0].x, trained[-1].x) == (0, 100)
    assert drawn.ships is not None
    assert drawn.ships.y == max(mark.y for mark in drawn.marks if mark.kind == "shipped")
    assert drawn.tolerance is not None
    after = [mark.y < drawn.tolerance for mark in drawn.marks if mark.kind == "shipped"]
    assert after == [False] * 4 + [True] * 5, "above the dashes it was above 0.91"
