"""How sure a difference is: against values worked out elsewhere, against definitions, and by simulation."""

from __future__ import annotations

import sys
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates import statistics

_SHARES = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.0, 0.0, 0.5, 1.0]), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("solved", "items", "low", "high"),
    [
        # Brown, Cai and DasGupta's tables give two-sided intervals; these are their 90 % ones
        (0, 15, 0.0, 18.10),
        (15, 15, 81.90, 100.0),
        (5, 10, 22.24, 77.76),
    ],
)
def test_the_exact_interval_is_clopper_and_pearsons(solved: int, items: int, low: float, high: float):
    found = statistics.exact(solved, items)
    assert (round(found.low, 2), round(found.high, 2)) == (low, high)


@given(solved=st.integers(0, 40), more=st.integers(0, 40))
def test_the_ends_of_the_exact_interval_have_the_probability_that_defines_them(solved: int, more: int):
    items = solved + more
    if not items:
        return
    found = statistics.exact(solved, items)

    def at_least(count: int, share: float) -> float:
        return sum(comb(items, k) * share**k * (1 - share) ** (items - k) for k in range(count, items + 1))

    if solved:
        assert at_least(solved, found.low / 100) == pytest.approx(0.05, abs=1e-6)
    if more:
        assert 1 - at_least(solved + 1, found.high / 100) == pytest.approx(0.05, abs=1e-6)


@given(solved=st.integers(0, 200), more=st.integers(0, 200))
def test_wilsons_interval_holds_the_score_and_narrows_with_more_items(solved: int, more: int):
    items = solved + more
    if not items:
        return
    found, wider = statistics.wilson(solved / items, items), statistics.wilson(solved / items, max(1, items // 4))
    assert -1e-9 <= found.low <= 100 * solved / items + 1e-9
    assert 100 * solved / items - 1e-9 <= found.high <= 100 + 1e-9
    assert wider.high - wider.low >= found.high - found.low - 1e-9


@given(worse=st.integers(0, 40), better=st.integers(0, 40))
def test_mcnemar_is_the_tail_of_fair_coins(worse: int, better: int):
    changed = worse + better
    tail = Fraction(sum(comb(changed, k) for k in range(worse, changed + 1)), 2**changed)
    assert statistics.mcnemar(worse, better) == pytest.approx(float(tail), abs=1e-12)


@pytest.mark.parametrize(("worse", "better"), [(5, 0), (7, 1), (9, 2)])
def test_the_fewest_regressions_that_are_not_chance(worse: int, better: int):
    assert statistics.mcnemar(worse, better) <= 0.05 < statistics.mcnemar(worse - 1, better)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_rejects_what_its_steps_reject(values: list[float]):
    adjusted = statistics.holm(values)
    rejected = set()
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        if values[index] * (len(values) - rank) > 0.05:
            break
        rejected.add(index)
    assert {index for index, value in enumerate(adjusted) if value <= 0.05} == rejected


@given(_SHARES)
def test_the_same_items_give_the_same_numbers_in_any_process(items: list[float]):
    assert statistics.paired([items]) == statistics.paired([list(items)])


@given(_SHARES)
def test_the_interval_holds_the_mean_pulled_towards_no_difference(items: list[float]):
    found = statistics.paired([items])
    pulled = 100 * sum(items) / (len(items) + 2)
    assert found.interval.low <= pulled + 1e-9
    assert pulled - 1e-9 <= found.interval.high
    assert found.mean == pytest.approx(100 * sum(items) / len(items))


def test_items_that_never_changed_do_not_make_few_of_them_certain():
    """A plain bootstrap of equal answers is a point, and would pass any candidate on any pack that is small enough."""
    assert statistics.paired([[0.0] * 15]).interval.low < -5
    assert statistics.paired([[0.0] * 570]).interval.low > -1


@given(st.lists(_SHARES, min_size=1, max_size=3))
def test_packs_count_alike_whatever_their_size(strata: list[list[float]]):
    assert statistics.paired(strata).mean == pytest.approx(
        100 * np.mean([np.mean(items) for items in strata]), abs=1e-9
    )


@given(solved=st.tuples(st.integers(0, 15), st.integers(0, 15)))
def test_totals_alone_are_less_sure_than_the_same_items(solved: tuple[int, int]):
    ours, theirs = solved
    apart = statistics.unpaired([(ours / 15, theirs / 15)], [15])
    kept = min(ours, theirs)
    changed = [1.0] * (ours - kept) + [-1.0] * (theirs - kept)
    together = statistics.paired([changed + [0.0] * (15 - len(changed))])
    assert apart.mean == pytest.approx(together.mean)
    assert apart.p_worse is None
    assert apart.interval.low <= apart.mean + 1e-9 <= apart.interval.high + 2e-9


def _asked(generator: np.random.Generator, chances: np.ndarray, runs: int) -> np.ndarray:
    return generator.binomial(runs, chances) / runs


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("items", [15, 60, 164, 570])
def test_by_simulation_identical_models_seldom_fail_and_a_drop_of_twice_the_margin_seldom_passes(
    items: int, runs: int, capsys: pytest.CaptureFixture[str]
):
    """Items between hopeless and certain, some flaky; the drop takes whole items or a little of each."""
    margin, trials = 5.0, 300
    generator = np.random.default_rng(items * 10 + runs)
    told = {"identical": [0, 0], "drop of 10, whole items": [0, 0], "drop of 10, a little of each": [0, 0]}
    for _ in range(trials):
        chances = generator.beta(0.5, 0.3, size=items)
        fallen = np.where(generator.random(items) < 0.10 / max(chances.mean(), 0.10), 0.0, chances)
        lower = np.clip(chances - 0.10, 0, 1)
        lower = np.clip(lower * (chances.mean() - 0.10) / max(lower.mean(), 1e-9), 0, 1)
        for name, other in zip(told, (chances, fallen, lower), strict=True):
            ours, theirs = _asked(generator, other, runs), _asked(generator, chances, runs)
            found = statistics.paired([(ours - theirs).tolist()])
            chance = found.p_worse
            if runs == 1:
                chance = statistics.mcnemar(int((ours < theirs).sum()), int((ours > theirs).sum()))
            assert chance is not None
            told[name][0] += found.interval.low >= -margin
            told[name][1] += chance <= 0.05 and found.mean < -margin
    shares = {name: tuple(100 * count / trials for count in counts) for name, counts in told.items()}
    with capsys.disabled():
        words = "; ".join(
            f"{name}: Pass {passed:.1f} %, Fail {failed:.1f} %" for name, (passed, failed) in shares.items()
        )
        sys.stdout.write(f"\n{items:>4} items x {runs}, margin 5: {words}")
    assert shares["identical"][1] <= 5
    assert all(passed <= 5 for name, (passed, _) in shares.items() if name != "identical")
    if (items, runs) == (570, 3):
        assert shares["identical"][0] >= 80
