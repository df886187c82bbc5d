"""What a prune leaves beside the model: its scores, and a picture of them that says the same."""

from __future__ import annotations

import re
from decimal import Decimal
from xml.etree import ElementTree as Xml

import pytest

from gates import canonical
from registry.recipes import Prune
from stages.prune.attachments import attachments, heat_map, unasked
from stages.prune.criteria import Choice, best

SVG = "{http://www.w3.org/2000/svg}"


def choice(layer: int, scores: list[float], counts: list[int] | None, keep: int) -> Choice:
    return Choice(layer, scores, counts, best(scores, keep))


LAYERS = [
    choice(0, [4.0, 0.0, 2.0, 1.0, 3.0, 0.5, 6.0, 5.0], [9, 0, 9, 9, 9, 1, 9, 9], 5),
    choice(2, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], [1, 1, 1, 1, 1, 1, 1, 1], 5),
]


def picture(svg: str) -> Xml.Element:
    return Xml.fromstring(svg)  # noqa: S314 - drawn by ourselves a moment ago


def cells(svg: str) -> dict[tuple[int, int], str]:
    """The fill of each cell by (row, expert), read from the picture."""
    found = {}
    for path in picture(svg).iter(f"{SVG}path"):
        for x, y, wide, high in re.findall(r"M(\d+) (\d+)h(\d+)v(\d+)h-\d+z", path.get("d")):
            place = int(y) // int(high), int(x) // int(wide)
            assert place not in found, "one cell, one colour"
            found[place] = path.get("fill")
    return found


@pytest.mark.parametrize("experts", [8, 60, 256])
def test_every_expert_of_every_layer_has_one_cell_and_those_removed_have_one_colour(experts):
    scores = [float((7 * expert) % experts) for expert in range(experts)]
    layers = [choice(number, scores, [1] * experts, experts // 2) for number in range(3)]
    found = cells(heat_map(layers, "reap"))
    assert found.keys() == {(row, expert) for row in range(3) for expert in range(experts)}
    removed = {found[0, expert] for expert in range(experts) if expert not in layers[0].kept}
    stay = {found[0, expert] for expert in layers[0].kept}
    assert len(removed) == 1
    assert not removed & stay


def test_among_those_that_stay_a_higher_score_is_never_lighter():
    found = cells(heat_map(LAYERS, "reap"))
    ranked = sorted(LAYERS[1].kept, key=LAYERS[1].scores.__getitem__)
    darkness = [-sum(bytes.fromhex(found[1, expert][1:])) for expert in ranked]
    assert darkness == sorted(darkness)
    assert len(set(darkness)) == 5
    assert found[0, 1] == "#ffffff", "it saw no token"


def test_the_picture_names_its_layers_and_its_criterion():
    drawn = picture(heat_map(LAYERS, "soft_counting"))
    texts = [text.text for text in drawn.iter(f"{SVG}text")]
    assert "soft counting: layer by expert" in texts
    assert {"0", "2"} <= set(texts)
    assert "layer 0: 5 of 8 experts stay, 1 saw no token" in [title.text for title in drawn.iter(f"{SVG}title")]


def test_the_scores_come_back_as_they_were_and_the_same_scores_give_the_same_bytes():
    settings = Prune(compression=Decimal("0.3"), mix="m.yaml", renormalize_router=True)
    made = attachments(LAYERS, settings)
    assert made == attachments(LAYERS, settings)
    scores = canonical.loads(made["scores.json"])
    assert (scores["criterion"], scores["renormalize_router"]) == ("reap", True)
    assert [Choice(**layer) for layer in scores["layers"]] == LAYERS
    assert cells(made["scores.svg"].decode()) == cells(heat_map(LAYERS, "reap"))


def test_experts_that_saw_no_token_are_counted_and_their_layers_named():
    assert unasked(LAYERS).startswith("1 of 16 experts saw no token and score 0 (layers 0)")
    assert unasked(LAYERS[1:]) is None
    assert unasked([Choice(0, [0.5, 0.1], None, [0])]) is None, "chance looks at no data"
