"""The pages as markup: nothing foreign becomes part of it, and they hold nothing that runs or is fetched."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gates.reports import Entry, Made, Overview, Part, Report, Subject, page_of_all, render
from gates.reports.charts import around_zero, heat, tree
from gates.reports.html import colour
from gates.reports.words import visible
from tests.support import reports

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}\x1b[31m\u202e\x00\ud800</pre></style>"


class _Markup(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def test_a_page_is_whole_in_itself_and_runs_nothing():
    for page in (render(reports.report(), "html"), page_of_all(reports.overview())):
        markup = _Markup(page)
        names = {tag for tag, _ in markup.elements}
        assert not names & {"script", "link", "iframe", "img", "object", "form", "base"}
        for _, attributes in markup.elements:
            assert not [key for key in attributes if key.startswith("on") or key in ("style", "src", "srcset")]
            assert re.fullmatch(r"#[a-z]+|[a-z0-9._~-]+\.html|", attributes.get("href") or "")
        (style,) = re.findall(r"<style>(.*?)</style>", page.decode(), re.DOTALL)
        sha = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        policy = next(a["content"] for tag, a in markup.elements if a.get("http-equiv") == "Content-Security-Policy")
        assert policy == f"default-src 'none'; style-src 'sha256-{sha}'; base-uri 'none'; form-action 'none'"
        assert "url(" not in style
        assert "@import" not in style


def test_hostile_text_is_words_and_nothing_else():
    calm, hostile = (_Markup(render(reports.hostile(text), "html")) for text in ("calm", HOSTILE))
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in calm.elements]
    assert "<script>alert(1)</script>" in hostile.words
    assert "{{ 7*7 }}" in hostile.words
    assert "\\x1b[31m\\u202e\\x00\\ud800" in hostile.words


@settings(max_examples=25)
@given(st.text(alphabet=st.one_of(st.sampled_from("<>&\"'`={}%#/\\-!\x00\x1b\u202e\ud800 a"), st.characters())))
def test_no_text_changes_the_structure_of_a_page(text: str):
    def structure(said: str) -> list[str]:
        return [tag for tag, _ in _Markup(render(reports.hostile("x" + said), "html")).elements]

    assert structure(text) == structure("calm")


@pytest.mark.parametrize("kind", ["json", "md", "junit", "html"])
def test_whatever_a_model_says_every_kind_can_be_written(kind: str):
    assert render(reports.report(said=HOSTILE), kind)


@pytest.mark.parametrize("kind", ["json", "md", "junit", "html"])
def test_a_report_renders_from_gates_alone_with_nothing_known_of_the_candidate(kind: str):
    said = reports.story(reports.POLICY, {"toolcall": 63, "bugfind": 23}, {"toolcall": 90, "bugfind": 8})
    assert said.subject == Subject()
    assert b"FailToolcall" in render(said, kind)


def test_the_json_report_is_the_model_itself():
    said = reports.report()
    assert Report.from_bytes(render(said, "json")) == said


def test_a_candidate_known_by_name_alone_is_on_the_page_of_all():
    page = page_of_all(Overview(candidates=(Entry(name="broken", damage=HOSTILE),)))
    assert b"broken is damaged" in page
    assert b"<script" not in page


def test_a_page_of_all_of_nothing_says_so():
    words = _Markup(page_of_all(Overview(candidates=()))).words
    assert "There are none yet." in words
    assert "Nothing is promoted." in words


def test_a_page_is_no_address_elsewhere():
    with pytest.raises(ValueError, match="page"):
        Entry(name="a", page="javascript:alert(1)//.html")


@given(st.text())
def test_what_is_made_visible_shows_no_control_characters_and_loses_no_letters(text: str):
    shown = visible(text)
    assert all(character.isprintable() or character in "\n\t" for character in shown)
    assert [c for c in text if c.isalnum()] == [c for c in shown if c.isalnum()] or shown != text


@given(st.lists(st.floats(-100, 100), max_size=8))
def test_an_axis_holds_every_value_with_zero_in_its_middle(values: list[float]):
    scale = around_zero(values)
    assert scale.low == -scale.high
    assert all(scale.low <= value <= scale.high for value in values)
    assert scale.at(0) == "50.00%"
    assert scale.ticks[::2] == (scale.low, 0, scale.high)
    assert all(tick == int(tick) for tick in scale.ticks)


@given(st.floats(0, 100))
def test_a_higher_score_is_never_paler(score: float):
    assert 0 <= heat(score) <= heat(100) == 10
    assert heat(score) <= heat(min(100.0, score + 1))


@given(st.lists(st.integers(0, 30), max_size=30))
def test_a_drawing_has_every_manifest_once_below_its_parent(parents: list[int]):
    """The parent of number n is one of those before it, or nobody."""
    made = [
        Made(digest=f"{number:064x}", parent=f"{chosen:064x}" if chosen < number else None)
        for number, chosen in enumerate(parents)
    ]
    rows = tree(made)
    assert sorted(row.made.digest for row in rows) == [each.digest for each in made]
    depth = {row.made.digest: row.depth for row in rows}
    for row in rows:
        assert row.depth == (0 if row.made.parent is None else depth[row.made.parent] + 1)
        assert all(0 < column < row.depth for column in row.through)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            reports.story(reports.POLICY, {"toolcall": 63}, {"toolcall": 90}),
            "Single items are not known on both sides.",
        ),
        (reports.report(chat_template="9" * 64), "No pack is compared, so no item is."),
    ],
)
def test_why_no_item_is_shown_as_changed_is_said(said: Report, words: str):
    assert words in _Markup(render(said, "html")).words


def test_without_a_baseline_nothing_is_said_of_comparisons():
    said = reports.report()
    alone = said.model_copy(
        update={
            "verdict": said.verdict.model_copy(update={"baseline": None, "baseline_evidence": ()}),
            "packs": tuple(
                pack.model_copy(update={"whole": Part(score=50, interval=(40, 60), items=15, runs=1), "categories": ()})
                for pack in said.packs
            ),
            "flips": (),
        }
    )
    words = _Markup(render(alone, "html")).words
    assert "There is no baseline to hold single items against." in words
    assert "Holm" not in words


def test_that_no_item_changed_is_said_of_the_packs_alone_whose_items_are_compared():
    said = reports.report()
    packs = [
        pack
        if pack.pack == "toolcall"
        else pack.model_copy(update={"whole": pack.whole.model_copy(update={"paired": False})})
        for pack in said.packs
    ]
    same = said.model_copy(update={"flips": (), "packs": tuple(packs)})
    words = _Markup(render(same, "html")).words
    assert "No item changed in toolcall; elsewhere single items are not compared." in words
    assert "No item changed." in _Markup(render(said.model_copy(update={"flips": ()}), "html")).words


def test_under_several_policies_the_worst_verdict_colours():
    assert [colour(word) for word in ("Pass, FailToolcall", "Pass, Inconclusive", "Pass", None, "stale")] == [
        "fail", "unsure", "pass", "none", "none",
    ]  # fmt: skip
