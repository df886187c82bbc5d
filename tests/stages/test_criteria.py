"""What experts score, for every family, and which of them stay."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModel

from gates.errors import UsageError
from registry.families import families
from registry.recipes import Prune
from stages.common import experts
from stages.common.experts import Routing
from stages.prune.criteria import Tally, best, by_chance
from stages.prune.routers import Router, router_of

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "initializer_range": 0.3,
}
GROUPED = {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 0, "routed_scaling_factor": 2.5}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 8},
    "qwen3_5_moe_text": {"num_experts": 8, "shared_expert_intermediate_size": 24},
    "qwen3_next": {"num_experts": 8, "shared_expert_intermediate_size": 24},
    "qwen2_moe": {"num_experts": 8, "shared_expert_intermediate_size": 24},
    "mixtral": {"num_local_experts": 8},
    "olmoe": {"num_experts": 8, "intermediate_size": 24},
    "deepseek_v3": {"n_routed_experts": 8, "n_shared_experts": 1, "num_key_value_heads": 4} | GROUPED | LATENT,
    "deepseek_v2": {"n_routed_experts": 8, "n_shared_experts": 1, "topk_method": "group_limited_greedy"}
    | {"num_key_value_heads": 4}
    | GROUPED
    | LATENT,
    "glm4_moe_lite": {"n_routed_experts": 8, "n_shared_experts": 1, "num_key_value_heads": 4} | GROUPED | LATENT,
    "glm4_moe": {"n_routed_experts": 8, "n_shared_experts": 1} | GROUPED,
}
RENORMALISES = {"qwen3_5_moe_text": (True,), "mixtral": (True,), "deepseek_v2": (False,)}
"""Whether the weights are divided by their sum, where that is not as norm_topk_prob says."""
CRITERIA = ("reap", "activation_norm", "soft_counting", "frequency")


@dataclass(frozen=True)
class Layer:
    """The experts of one layer of a random model, computed by transformers itself, and tokens [T, H] to show to it."""

    family: str
    text: dict[str, Any]
    router: nn.Module
    experts: nn.Module
    states: torch.Tensor

    def routing(self) -> Routing:
        return experts.routing(self.router, self.experts, self.states)


def layer_of(family: str, **changes: Any) -> Layer:
    torch.manual_seed(3)
    config = AutoConfig.for_model(family, **SIZES | FAMILIES[family] | changes)
    config._experts_implementation = "eager"
    moe = AutoModel.from_config(config, dtype=torch.float32).eval().layers[1].mlp
    with torch.no_grad():
        moe.gate.weight.normal_()
        if hasattr(moe.gate, "e_score_correction_bias"):
            moe.gate.e_score_correction_bias.normal_(std=0.3)
    return Layer(family, config.to_dict(), moe.gate, moe.experts, torch.randn(60, SIZES["hidden_size"]))


@pytest.fixture(
    params=[(family, norm) for family in FAMILIES for norm in RENORMALISES.get(family, (True, False))],
    ids=lambda param: f"{param[0]}{'' if param[1] else ', not renormalised'}",
)
def layer(request) -> Layer:
    family, norm = request.param
    return layer_of(family, norm_topk_prob=norm)


def settings_of(criterion: str, *, renormalize: bool | None = None) -> Prune:
    return Prune(compression=Decimal("0.5"), mix="mix.yaml", criterion=criterion, renormalize_router=renormalize)


def tally_of(layer: Layer, settings: Prune, *, real: torch.Tensor | None = None) -> Tally:
    tally = Tally(8, settings, router_of(layer.family, layer.text))
    tally.add(layer.routing(), torch.ones(len(layer.states), dtype=torch.bool) if real is None else real)
    return tally


@torch.no_grad()
def naive(layer: Layer, settings: Prune, real: torch.Tensor) -> tuple[list[float], list[int]]:
    """The definition, token by token and expert by expert, over transformers' own router and experts."""
    sums, counts = [0.0] * 8, [0] * 8
    for x in layer.states[real]:
        logits, weights, index = layer.router(x[None])
        for weight, expert in zip(weights[0].tolist(), index[0].tolist(), strict=True):
            answer = layer.experts(x[None], torch.tensor([[expert]]), torch.ones(1, 1))[0]
            g = weight if settings.renormalize_router is None else behind(layer, settings, logits[0], index[0], expert)
            counts[expert] += 1
            sums[expert] += {
                "reap": g * float(answer.norm()),
                "activation_norm": float(answer.norm()),
                "soft_counting": g,
                "frequency": 1,
            }[settings.criterion]
    mean = settings.criterion == "reap"
    return [total / max(count, 1) if mean else total for total, count in zip(sums, counts, strict=True)], counts


def behind(layer: Layer, settings: Prune, logits: torch.Tensor, chosen: torch.Tensor, expert: int) -> float:
    """g of one expert before any renormalisation by the model: then divided by the sum over the chosen, or not."""
    sigmoid = layer.family in ("deepseek_v3", "glm4_moe", "glm4_moe_lite")
    scores = [float(each.sigmoid() if sigmoid else each.exp() / logits.exp().sum()) for each in logits]
    total = sum(scores[each] for each in chosen.tolist()) if settings.renormalize_router else 1
    return scores[expert] / total * layer.text.get("routed_scaling_factor", 1)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_are_those_of_the_definition_for_every_family_and_padding_does_not_count(layer, criterion):
    settings = settings_of(criterion)
    real = torch.arange(60) % 7 != 0
    tally = tally_of(layer, settings, real=real)
    scores, counts = naive(layer, settings, real)
    assert tally.counts() == counts
    assert sum(counts) == 2 * int(real.sum())
    torch.testing.assert_close(torch.tensor(tally.scores()), torch.tensor(scores), rtol=1e-5, atol=1e-5)
    assert max(scores) > 0.1


@pytest.mark.parametrize("criterion", ["reap", "soft_counting"])
@pytest.mark.parametrize("renormalize", [True, False])
def test_renormalisation_changes_g_in_the_score_as_it_is_defined(layer, criterion, renormalize):
    settings = settings_of(criterion, renormalize=renormalize)
    scores, counts = naive(layer, settings, torch.ones(60, dtype=torch.bool))
    tally = tally_of(layer, settings)
    assert tally.counts() == counts
    torch.testing.assert_close(torch.tensor(tally.scores()), torch.tensor(scores), rtol=1e-5, atol=1e-5)


def test_what_is_computed_from_the_logits_is_what_the_router_puts_out(layer):
    """Renormalised where the model renormalises, and not where it does not: that must be g itself."""
    norm = layer.text.get("norm_topk_prob", True)
    own, other = (tally_of(layer, settings_of("reap", renormalize=value)).scores() for value in (norm, not norm))
    as_it_is = torch.tensor(tally_of(layer, settings_of("reap")).scores())
    torch.testing.assert_close(torch.tensor(own), as_it_is, rtol=1e-5, atol=1e-6)
    assert (torch.tensor(other) - as_it_is).abs().max() > 0.01


def test_an_expert_that_no_token_is_routed_to_scores_nothing_and_goes_first():
    layer = layer_of("qwen3_moe")
    index = torch.tensor([[0, 1], [1, 2], [5, 7]])
    routing = Routing(index, torch.full((3, 2), 0.5), torch.zeros(3, 8), torch.full((3, 2), 2.0))
    for criterion in CRITERIA:
        tally = Tally(8, settings_of(criterion), router_of(layer.family, layer.text))
        tally.add(routing, torch.ones(3, dtype=torch.bool))
        choice = tally.choice(4, 5)
        assert choice.counts == [1, 2, 1, 0, 0, 1, 0, 1]
        assert [expert for expert, score in enumerate(choice.scores) if score == 0] == [3, 4, 6]
        assert choice.kept == [0, 1, 2, 5, 7]
        expected = {"reap": 1.0, "activation_norm": 2.0, "soft_counting": 0.5, "frequency": 1.0}[criterion]
        assert choice.scores[0] == expected, "of one token, a mean is a sum"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.sampled_from(CRITERIA))
def test_tallies_of_parts_merged_are_the_tally_of_the_whole_and_the_same_parts_give_the_same_bits(sizes, criterion):
    tokens = sum(sizes)
    draw = torch.Generator().manual_seed(tokens)
    index = torch.rand(tokens, 8, generator=draw).argsort(dim=-1)[:, :2]
    weights, norms = (torch.rand(tokens, 2, generator=draw) for _ in range(2))
    whole = Routing(index, weights, torch.zeros(tokens, 8), norms)
    router = Router(lambda logits: logits, 1.0)

    def tally(of: Routing) -> Tally:
        made = Tally(8, settings_of(criterion), router)
        made.add(of, torch.ones(len(of.index), dtype=torch.bool))
        return made

    parts = [
        Routing(*parts)
        for parts in zip(*(each.split(sizes) for each in (index, weights, whole.logits, norms)), strict=True)
    ]
    states = [tally(part).state() for part in parts]
    merged, again = (Tally(8, settings_of(criterion), router) for _ in range(2))
    for state in states:
        merged.merge(state)
    middle = Tally(8, settings_of(criterion), router)
    for state in states[:2]:
        middle.merge(state)
    again.merge(middle.state())
    for state in states[2:]:
        again.merge(state)
    assert again.state() == merged.state()
    assert merged.counts() == tally(whole).counts()
    torch.testing.assert_close(torch.tensor(merged.scores()), torch.tensor(tally(whole).scores()), rtol=1e-12, atol=0)


@given(st.data())
def test_the_best_of_every_group_stay_and_of_equals_the_first(data):
    groups = data.draw(st.sampled_from([1, 2, 4]))
    scores = data.draw(st.lists(st.integers(0, 3), min_size=3, max_size=3).map(lambda part: part * groups))
    scores = data.draw(st.permutations(scores))
    each = data.draw(st.integers(1, 3))
    kept = best(scores, each * groups, groups)
    assert kept == sorted(set(kept))
    for begin in range(0, len(scores), 3):
        stay = [expert for expert in kept if begin <= expert < begin + 3]
        gone = [expert for expert in range(begin, begin + 3) if expert not in kept]
        assert len(stay) == each
        assert all((scores[one], -one) > (scores[other], -other) for one in stay for other in gone)


def test_chance_differs_by_seed_and_layer_and_drops_as_many_in_every_group():
    first, again, other, deeper = (by_chance(layer, 16, 8, seed, 4) for layer, seed in ((0, 0), (0, 0), (0, 1), (1, 0)))
    assert first == again
    assert len({tuple(each.kept) for each in (first, other, deeper)}) == 3
    assert first.counts is None
    assert all(sum(begin <= expert < begin + 4 for expert in first.kept) == 2 for begin in range(0, 16, 4))


def test_every_family_that_sluice_knows_has_a_router():
    for model_type in families():
        assert router_of(model_type, {"routed_scaling_factor": 2.5}).factor == 2.5


def test_a_family_whose_router_is_not_known_is_refused_by_name():
    with pytest.raises(UsageError, match=r"dbrx(.|\n)*routers\.py"):
        router_of("dbrx", {})
