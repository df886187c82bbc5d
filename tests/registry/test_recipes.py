"""Recipes say what is made, in an order that makes sense, and are refused with line, field and remedy otherwise."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from math import ceil
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gates.errors import UsageError
from registry.recipes import Recipe, experts_kept, read_mix, read_recipe

RECIPE = """\
name: v7b
parent: toy
steps:
  - prune: {compression: 0.289, mix: mixes/broad.yaml}
  - quantize: {format: fp8-block}
  - evaluate: {packs: [toolcall-15]}
  - gate: {policy: policies/agentic.yaml, baseline: best}
"""

NESTED = "&a0 [x]"
"""A list of nine to the power of 24 values, in aliases to aliases."""
for number in range(1, 25):
    NESTED = f"&a{number} [{NESTED}{f', *a{number - 1}' * 8}]"


def read(folder: Path, text: str) -> Recipe:
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return read_recipe(folder / "recipe.yaml")


def refused(folder: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        read(folder, text)
    assert "recipe.yaml" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("experts", "compression", "kept"),
    [(256, "0.289", 183), (256, "0.40", 154), (10, "0.7", 3), (60, "0.85", 9), (16, "0.25", 12), (16, "0.5", 8)],
)
def test_the_counts_that_people_publish(experts, compression, kept):
    assert experts_kept(experts, Decimal(compression), top_k=2) == kept


@given(
    experts=st.integers(2, 512),
    compression=st.decimals("0.001", "0.999", places=3),
    grouping=st.sampled_from([(1, None), (1, 1), (2, 1), (4, 4), (8, 4)]),
    top_k=st.integers(1, 8),
)
def test_as_many_experts_stay_as_the_decimal_says_and_never_too_few(experts, compression, grouping, top_k):
    """A token's top k come from `used` of the groups, which a router ranks by the best two experts of each; also where
    there is one group. Other routers know of no groups."""
    groups, stated = grouping
    used = stated or groups
    experts *= groups
    assume(top_k <= experts // groups * used)
    exact = experts * (1 - Fraction(compression))
    try:
        kept = experts_kept(experts, compression, top_k=top_k, groups=groups, groups_used=stated)
    except UsageError:
        beyond = exact <= experts - groups
        assert not beyond or ceil(exact / groups) * used < top_k or (stated and exact <= groups)
        return
    assert kept % groups == 0
    assert kept // groups * used >= top_k
    assert stated is None or kept >= 2 * groups
    assert exact <= kept < exact + groups
    assert kept < experts


@given(experts=st.integers(2, 256), top_k=st.integers(1, 8), groups=st.sampled_from([1, 2, 4]))
def test_the_remedies_for_too_deep_and_too_shallow_a_cut_are_ones_that_work(experts, top_k, groups):
    experts *= groups
    least = max(-(-top_k // groups), 2 if groups > 1 else 1) * groups
    assume(least < experts)
    for compression, kept in (("0.9999", least), ("0.0001", experts - groups)):
        try:
            experts_kept(experts, Decimal(compression), top_k=top_k, groups=groups)
        except UsageError as error:
            advised = Decimal(error.remedy.split()[-1])
            assert experts_kept(experts, advised, top_k=top_k, groups=groups) == kept


def test_a_cut_below_top_k_and_a_cut_of_nothing_are_refused_with_a_remedy():
    with pytest.raises(UsageError, match=r"leaves 1 of 16 experts(.|\n)*at most 0\.5000"):
        experts_kept(16, Decimal("0.95"), top_k=8)
    with pytest.raises(UsageError, match=r"routed to 8 from 4 of 8 groups, which takes 16(.|\n)*at most 0\.9375"):
        experts_kept(256, Decimal("0.97"), top_k=8, groups=8, groups_used=4)
    with pytest.raises(UsageError, match="no expert to spare"):
        experts_kept(4, Decimal("0.5"), top_k=4)
    with pytest.raises(UsageError, match="removes none"):
        experts_kept(16, Decimal("0.01"), top_k=2)


def test_renormalisation_is_refused_where_the_criterion_has_no_use_for_it(tmp_path):
    text = RECIPE.replace("compression: 0.289", "compression: 0.289, criterion: frequency, renormalize_router: true")
    assert "frequency does not look at the router's weights" in refused(tmp_path, text)


def test_a_recipe_is_read_with_exact_decimals_and_its_defaults(tmp_path):
    recipe = read(tmp_path, RECIPE)
    assert [step.kind for step in recipe.steps] == ["prune", "quantize", "evaluate", "gate"]
    assert recipe.steps[0].prune.compression == Decimal("0.289")
    assert str(recipe.steps[0].prune.compression) == "0.289"
    assert recipe.steps[0].prune.criterion == "reap"
    assert recipe.steps[0].prune.renormalize_router is None


@pytest.mark.parametrize(("written", "size"), [("24", 24 * 2**30), ("24 GiB", 24 * 2**30), ("24GB", 24 * 10**9)])
def test_a_card_is_written_as_plan_takes_it(tmp_path, written, size):
    recipe = read(tmp_path, RECIPE.replace("format: fp8-block", f"card: {written}"))
    assert recipe.steps[1].settings.card == size


def test_the_last_candidate_has_the_recipe_s_name_and_those_on_the_way_their_step_s(tmp_path):
    recipe = read(tmp_path, RECIPE)
    assert [recipe.candidate_of(number) for number in range(4)] == ["v7b.prune", "v7b", "v7b", "v7b"]
    assert [recipe.input_of(number) for number in range(4)] == ["toy", "v7b.prune", "v7b", "v7b"]


def test_a_recipe_that_makes_nothing_works_on_its_parent(tmp_path):
    recipe = read(tmp_path, "name: look\nparent: toy\nsteps:\n  - evaluate: {packs: [a]}\n")
    assert (recipe.candidate_of(0), recipe.input_of(0)) == ("toy", "toy")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("mix:", "mixx:", "unknown key"),
        ("compression: 0.289", "compression: 1.5", "steps[0].prune.compression"),
        ("compression: 0.289", "compression: 0", "steps[0].prune.compression"),
        ("compression: 0.289", "compression: .nan", "not readable"),
        ("compression: 0.289", "compression: much", "steps[0].prune.compression"),
        ("name: v7b", "name: ../v7b", "line 1, name"),
        ("name: v7b", "name: toy", "cannot make its own parent"),
        ("parent: toy\n", "", "parent"),
        ("  - quantize: {format: fp8-block}\n", "  - quantize: {format: int3}\n", "line 5"),
        ("  - quantize", "  - polish", "polish"),
        ("packs: [toolcall-15]", "packs: []", "packs"),
        ("packs: [toolcall-15]", "packs: [a], repeats: 3", "temperature"),
        ("{policy: policies/agentic.yaml, baseline: best}", "{}", "policy"),
        ("{format: fp8-block}", "", "line 5, steps[1].quantize: its settings are missing"),
        ("packs: [toolcall-15]", "packs: [a, a]", "line 6, steps[2].evaluate.packs: one stands twice"),
        ("packs: [toolcall-15]", "packs: [a], thinking: perhaps", "line 6, steps[2].evaluate.thinking: "),
        ("packs: [toolcall-15]", "packs: [a], server_flags: {--x: 1}", "steps[2].evaluate.server_flags.--x: "),
        ("name: v7b", "name: V7", "line 1, name: a name is at most 64 of a-z 0-9 . _ -"),
        ("name: v7b", "name: 7", "line 1, name: a text is needed here"),
        ("  - quantize", "\t- quantize", "line 5, column 1: a tab, where only spaces indent"),
        ("[toolcall-15]", "[toolcall-15", "from line 6"),
        ("parent: toy", "parent: toy\nname: v8", "line 3, column 1: the key 'name' is given twice"),
        ("parent: toy", "parent: toy\0", "line 2: a character that no text has (U+0000)"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line_and_field(tmp_path, old, new, says):
    assert old in RECIPE
    assert says in refused(tmp_path, RECIPE.replace(old, new))


def test_where_a_key_is_unknown_or_missing_those_of_that_place_are_listed(tmp_path):
    said = refused(tmp_path, RECIPE.replace("compression", "compresion").replace("packs", "pack"))
    assert "the keys of steps[0].prune are compression, mix, " in said
    assert "the keys of steps[2].evaluate are packs, engine, " in said
    assert "the keys of the file" not in said


@pytest.mark.parametrize(
    ("data", "remedy"), [(None, "relative to the project"), (b"name: caf\xe9", "save it as UTF-8"), ("", "its files")]
)
def test_a_recipe_that_cannot_be_read_is_refused_with_what_to_do_about_that(tmp_path, data, remedy):
    path = tmp_path / "mine.yaml"
    if data == "":
        path.mkdir()
    elif data is not None:
        path.write_bytes(data)
    with pytest.raises(UsageError, match=remedy):
        read_recipe(path)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("compression: 0.25, seed: true", "steps[0].prune.seed"),
        ('compression: 0.25, seed: "9007199254740993"', "steps[0].prune.seed"),
        ("compression: 0.25, seed: 9007199254740992", "below 2**53"),
        (f"compression: 0.25, seed: {'9' * 5000}", "999… is no whole number"),
        ("compression: 0.25, seed: 1.0e+99999999", "beyond 32 digits"),
        ("compression: 0.25, seed: !!int many", "many is no whole number"),
        ("compression: 1.0e-99999999", "beyond 32 digits"),
        ('compression: "1e-99999999"', "steps[0].prune.compression"),
        ("compression: 0.25, renormalize_router: !!bool perhaps", "perhaps is neither true nor false"),
        ('compression: 0.25, criterion: "\\0"', "no file can be named"),
        ('compression: 0.25, "\\ud800": 1', "no file can be named"),
        ("compression: !!timestamp 2020-01-01", "timestamp"),
        ("compression: !!map [a]", "not keys and values"),
        (f"compression: 0.25, seed: {NESTED}, ? *a24 : 1", "a key is not text"),
    ],
)
def test_a_value_that_no_record_could_hold_is_refused_at_once(tmp_path, setting, says):
    text = f"name: v7b\nparent: toy\nsteps:\n  - prune: {{mix: a, {setting}}}\n"
    assert says in refused(tmp_path, text)


def test_a_file_that_is_something_else_is_not_recited(tmp_path):
    said = refused(tmp_path, "".join(f"user{number}: x\n" for number in range(1000)))
    assert len(said.splitlines()) < 20
    assert "and 991 more" in said


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ("[{quantize: {}}, {prune: {compression: 0.5, mix: a}}]", "the order is prune, train, quantize"),
        ("[{quantize: {}}, {train: {mix: a, reference: b}}]", "the order is prune, train, quantize"),
        (
            "[{train: {mix: a, reference: b}}, {prune: {compression: 0.5, mix: a}}]",
            "the order is prune, train, quantize",
        ),
        ("[{quantize: {}}, {quantize: {}}]", "stands twice"),
        ("[{prune: {compression: 0.5, mix: a}, quantize: {}}]", "a step is one of"),
        ("[{}]", "a step is one of"),
        ("[]", "steps"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(tmp_path, steps, says):
    assert says in refused(tmp_path, f"name: v7b\nparent: toy\nsteps: {steps}\n")


def test_training_stands_between_the_cut_and_the_bits(tmp_path):
    train = "train: {mix: b, reference: c}"
    steps = f"[{{prune: {{compression: 0.5, mix: a}}}}, {{{train}}}, {{evaluate: {{packs: [p]}}}}, {{quantize: {{}}}}]"
    recipe = read(tmp_path, f"name: v8\nparent: toy\nsteps: {steps}\n")
    assert [recipe.candidate_of(number) for number in range(4)] == ["v8.prune", "v8.train", "v8.train", "v8"]
    settings = recipe.steps[1].settings
    assert (settings.experts, settings.double_quantization, settings.lora.targets) == ("nf4", True, None)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("mix: b", "train.reference"),
        ("mix: b, reference: c, lora: {targets: [experts]}", "lora.targets"),
        ("mix: b, reference: c, lora: {targets: [router, router]}", "one stands twice"),
        ("mix: b, reference: c, lora: {targets: []}", "lora.targets"),
        ("mix: b, reference: c, experts: int8", "train.experts"),
        ("mix: b, reference: c, learning_rate: 0", "train.learning_rate"),
        ("mix: b, reference: c, max_steps: 0", "train.max_steps"),
        ("mix: b, reference: c, limit_gap: -1", "train.limit_gap"),
        ("mix: b, reference: c, seed: 4294967296", "train.seed"),
        ("mix: b, reference: c, epochs: 2, max_steps: 9", "epochs and max_steps"),
    ],
)
def test_settings_of_training_that_mean_nothing_are_refused(tmp_path, settings, says):
    assert says in refused(tmp_path, f"name: v8\nparent: toy\nsteps: [{{train: {{{settings}}}}}]\n")


def test_a_file_that_cannot_be_read_is_said_so(tmp_path):
    with pytest.raises(UsageError, match="relative to the project"):
        read_recipe(tmp_path / "missing.yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_recipe(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_mix(tmp_path / "binary.yaml")


def test_every_recipe_and_mix_that_we_ship_can_be_read(project):
    recipes = sorted((project / "recipes").rglob("*.yaml"))
    assert recipes
    for path in recipes:
        recipe = read_recipe(path)
        for step in recipe.steps:
            paths = [step.prune.mix] if step.prune else [step.train.mix, step.train.reference] if step.train else []
            for each in paths:
                mix = read_mix(project / each)
                assert all((project / dataset.path).is_file() for dataset in mix.datasets if dataset.path is not None)
            if step.gate:
                assert (project / step.gate.policy).is_file()


@pytest.mark.parametrize(
    ("dataset", "complaint"),
    [
        ("{count: 1}", "either path: FILE or hub: ORG/NAME"),
        ("{path: a.jsonl, hub: org/name, count: 1}", "either path: FILE or hub: ORG/NAME"),
        ("{path: a.jsonl, hub: null, count: 1}", "either path: FILE or hub: ORG/NAME"),
        ("{path: a.jsonl, split: test, count: 1}", "split: a local file has none"),
        ("{hub: name, count: 1}", "datasets[0].hub"),
        ("{hub: org/name, pool: 3, count: 4}", "4 rows cannot be drawn from 3"),
        ("{hub: org/name, skip: [0], count: 4}", "datasets[0].skip[0]"),
        ("{hub: org/name, count: 0}", "datasets[0].count"),
    ],
)
def test_a_dataset_that_says_two_things_or_too_little_is_refused(tmp_path, dataset, complaint):
    (tmp_path / "mix.yaml").write_text(f"name: m\ndatasets: [{dataset}]\n", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_mix(tmp_path / "mix.yaml")
    assert complaint in caught.value.what
