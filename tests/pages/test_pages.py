"""The pages as people see them: on a phone and on a desk, in light and dark, on paper, by keyboard."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gates.reports import page_of_all
from tests.pages.conftest import PAGES
from tests.support import reports

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.needs("chromium")

Look = Callable[..., "Page"]

OVERFLOWING = """() => [...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect();
  if (e.closest('.scroll') && !e.matches('.scroll')) return false;
  return box.width && (box.right > innerWidth + 1 || box.left < -1) && !e.closest('.skip, .unseen');
}).map(e => e.outerHTML.slice(0, 120))"""

# Of every text that is seen: how its colour contrasts with what lies behind it (WCAG 2.2, relative luminance).
PALEST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = rgb => rgb.slice(0, 3).map(c => linear(c / 255))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const found = rgba(getComputedStyle(e).backgroundColor);
      if (found[3] === 255) return found;
    }
    return rgba('white');
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !e.checkVisibility()) continue;
    const style = getComputedStyle(e);
    const ink = e.closest('svg') ? style.fill : style.color;
    const [a, b] = [light(rgba(ink)), light(behind(e))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), texts.currentNode.data.trim().slice(0, 60), e.className]);
  }
  return found.sort((x, y) => x[0] - y[0])[0];
}"""


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [320, 360, 768])
def test_nothing_is_wider_than_the_screen(look: Look, name: str, width: int):
    page = look(name, width=width)
    for details in page.locator("details").all():
        details.evaluate("e => e.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOWING) == []


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_can_be_read_against_what_lies_behind_it(look: Look, name: str, scheme: str):
    page = look(name, color_scheme=scheme)
    for details in page.locator("details").all():
        details.evaluate("e => e.open = true")
    palest = page.evaluate(PALEST)
    assert palest[0] >= 4.5, palest


def test_the_schemes_are_two(look: Look):
    shades = [
        look("report", color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    assert shades == ["rgb(255, 255, 255)", "rgb(17, 20, 23)"]


def test_the_first_screen_of_a_phone_says_verdict_rule_number_margin_and_interval(look: Look):
    page = look("report", width=360)
    for words in ("FailToolcall", "toolcall may drop at most 5 points", "−16.7", "−5.0", "−27.4 to −4.8", "60 × 1"):  # noqa: RUF001
        box = page.get_by_text(words).first.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < 900, words


def test_both_answers_to_an_item_that_flipped_stand_side_by_side_and_do_nothing(look: Look):
    page = look("report")
    flip = page.locator("details.flip").first
    flip.locator("summary").click()
    before, after = (figure.bounding_box() for figure in flip.locator("figure").all())
    assert before is not None
    assert after is not None
    assert before["y"] == after["y"]
    assert before["x"] < after["x"]
    assert "<script>document.title='gone'</script>" in flip.inner_text()
    assert "\\x1b[31m" in flip.inner_text()
    assert "\\u202e" in flip.inner_text()
    assert page.title() == "v7a: FailToolcall"


def test_on_a_phone_the_answers_stand_one_below_the_other(look: Look):
    flip = look("report", width=360).locator("details.flip").first
    flip.locator("summary").click()
    before, after = (figure.bounding_box() for figure in flip.locator("figure").all())
    assert before is not None
    assert after is not None
    assert before["y"] + before["height"] <= after["y"]


def test_conditions_that_differ_are_open_and_marked(look: Look):
    page = look("invalid")
    assert page.get_by_text("differ in chat_template").first.is_visible()
    assert page.locator("tr.differing").first.is_visible()


def test_a_difference_lies_where_its_scale_says(look: Look):
    """Left of the margin, which lies left of 0; its interval reaches as far as its numbers say."""
    chart = look("report").locator("section.decision svg.interval")
    dot, limit, zero = (chart.locator(f".{part}").bounding_box() for part in ("value", "limit", "zero"))
    span = chart.locator(".span").first.bounding_box()
    assert dot is not None
    assert limit is not None
    assert zero is not None
    assert span is not None
    centre = dot["x"] + dot["width"] / 2
    assert span["x"] < centre < limit["x"] < zero["x"]
    points = (zero["x"] - limit["x"]) / 5  # pixels; the limit lies 5 points below 0
    assert (zero["x"] - centre) / points == pytest.approx(16.7, abs=0.4)
    assert span["width"] / points == pytest.approx(27.4 - 4.8, abs=0.6)


@pytest.mark.parametrize("width", [360, 1280])
def test_the_curves_of_training_reach_from_the_first_step_to_the_last(look: Look, width: int):
    drawing = look("report", width=width).locator("#training svg.losses[role=img]")
    frame = drawing.bounding_box()
    assert frame is not None
    ends = (
        "e => { const b = e.getBBox(), m = e.getScreenCTM(); return [b.x * m.a + m.e, (b.x + b.width) * m.a + m.e]; }"
    )
    for line in ("trained", "shipped"):
        found = drawing.locator(f"polyline.{line}").evaluate(ends)
        assert found == pytest.approx([frame["x"], frame["x"] + frame["width"]], abs=1)
    marks = [box for each in drawing.locator("rect.shipped").all() if (box := each.bounding_box())]
    ring = drawing.locator("circle.ships").bounding_box()
    assert ring is not None
    centres = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in (*marks, ring)]
    assert centres[-1] == pytest.approx(centres[1], abs=1), "step 50 ships, the second that was measured"
    assert [x for x, _ in centres[:-1]] == sorted(x for x, _ in centres[:-1])
    assert centres[0][0] == pytest.approx(frame["x"], abs=1)
    assert centres[-2][0] == pytest.approx(frame["x"] + frame["width"], abs=1)


def test_what_was_measured_while_training_is_there_as_numbers_too(look: Look):
    page = look("report")
    page.get_by_text("What was measured").click()
    row = page.locator("#training tr.whole")
    assert row.inner_text().split() == ["50", "ships", "3.7600", "0.8500", "−2.9100", "10.0", "%", "50.0", "%"]  # noqa: RUF001


def test_everything_can_be_reached_and_opened_by_keyboard_and_focus_is_seen(look: Look):
    page = look("report")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the findings"
    box = page.locator(".skip").bounding_box()
    assert box is not None
    assert box["y"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        reached.add(page.evaluate("document.activeElement.tagName + '.' + document.activeElement.className"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert {"DIV.scroll", "SUMMARY."} <= reached
    page.locator("details.flip > summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details.flip").first.get_attribute("open") is not None


@pytest.mark.parametrize("name", PAGES)
def test_who_hears_a_page_finds_landmarks_headings_and_what_each_number_is(look: Look, name: str):
    page = look(name)
    for landmark in ("banner", "main", "contentinfo", "navigation"):
        assert page.get_by_role(landmark).count() == 1
    assert page.locator("h1").count() == 1
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("svg:not([aria-hidden]):not([aria-label])").count() == 0
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href") or "").count() == 1
    assert page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.parametrize("name", PAGES)
def test_on_paper_it_is_light_and_whole(look: Look, name: str):
    page = look(name, width=700, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert re.match(rb"%PDF", page.pdf(format="A4"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 700


def test_the_page_of_all_shows_what_is_served_and_a_shade_for_every_score(look: Look):
    page = look("all")
    card = page.locator(".cards li")
    assert [word in card.inner_text() for word in ("best", "v1", "Pass")] == [True] * 3
    assert page.locator("table.all tbody tr:not(.note)").count() == 12
    shades = page.locator("table.all td.heat").evaluate_all(
        "cells => cells.map(c => [Number(c.innerText), getComputedStyle(c).backgroundColor])"
    )
    assert len(shades) == 11 * 4
    assert len({shade for _, shade in shades}) > 5
    assert page.get_by_text("v4 is damaged: its manifest is missing").is_visible()


def test_the_lineage_is_drawn_as_a_tree_without_gaps(look: Look):
    page = look("all")
    rows = page.locator(".lineage li").evaluate_all("rows => rows.map(r => [r.offsetTop, r.offsetHeight])")
    assert len(rows) == 12
    assert all(height < 60 for _, height in rows)
    drawn = page.locator(".lineage svg").evaluate_all("all => all.map(s => s.getBoundingClientRect().height)")
    assert drawn == pytest.approx([height for _, height in rows], abs=1)
    dots = page.locator(".lineage .dot").evaluate_all("all => all.map(d => Math.round(d.getBoundingClientRect().x))")
    assert dots[0] < dots[1] < dots[2]


def test_a_page_of_200_candidates_opens_within_a_second(look: Look, pages: Path):
    (pages / "many.html").write_bytes(page_of_all(reports.overview(200)))
    begun = time.process_time(), time.perf_counter()
    page = look("many")
    loaded = page.evaluate("performance.getEntriesByType('navigation')[0].duration")
    assert page.locator(".lineage li").count() == 200
    assert loaded < 1000, (loaded, time.perf_counter() - begun[1])
