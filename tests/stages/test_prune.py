"""Pruning: which experts stay, that what is written is what was run, and that bad input leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gates.errors import IntegrityError, UsageError
from registry.checkpoint import inspect, read_config
from registry.recipes import Prune, Recipe, read_recipe
from registry.store import Candidate, Store
from stages.common import calibration
from stages.common.checkpoint import Checkpoint
from stages.common.job import Job
from stages.common.spool import Spool
from stages.common.streaming import LayerStream
from stages.prune import criteria, layers, prune, surgery
from stages.quantize import write_fp8
from tests.support import processes, tiny, whole
from tests.support.moe import write_model
from tests.support.whole import batches_of, chats

PROJECT = Path(__file__).resolve().parents[2]
KEEP = 4


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("plain"))


@dataclass(frozen=True)
class Made:
    """A checkpoint, the choices for it, what was propagated behind its last layer, and what was written."""

    source: Path
    choices: list[criteria.Choice]
    last: list[torch.Tensor]
    pruned: Path

    @property
    def staying(self) -> dict[int, list[int]]:
        return {choice.layer: choice.kept for choice in self.choices}


def settings_of(**settings: Any) -> Prune:
    return Prune(compression=Decimal("0.5"), mix="mix.yaml", **settings)


def choices_of(folder: Path, spool: Path, keep: int = KEEP, **settings: Any) -> list[criteria.Choice]:
    found = layers.choices(LayerStream(Checkpoint(folder)), settings_of(**settings), keep, batches_of(folder), spool)
    return [choice for choice in found if choice is not None]


@pytest.fixture(scope="module", params=whole.MODELS)
def made(request, tmp_path_factory) -> Made:
    family, layout = request.param.split(", ")
    place = tmp_path_factory.mktemp(family)
    more = {"num_local_experts": 8} if family == "mixtral" else {}
    mtp = family in whole.WITH_MTP
    return pruned(tiny.make(place / "source", family, fused=whole.LAYOUTS[layout], mtp=mtp, **more), place)


def pruned(source: Path, place: Path) -> Made:
    checkpoint, batches = Checkpoint(source), batches_of(source)
    stream = LayerStream(checkpoint)
    going = layers.choices(stream, settings_of(), KEEP, batches, place / "spool")
    found = [next(going) for _ in range(stream.layers)]
    last = held(place / "spool", batches, 2 * stream.layers)
    found += list(going)
    choices = [choice for choice in found if choice is not None]
    surgery.write_pruned(checkpoint, {choice.layer: choice.kept for choice in choices}, place / "pruned")
    return Made(source, choices, last, place / "pruned")


def held(folder: Path, batches: Sequence[calibration.Batch], step: int) -> list[torch.Tensor]:
    """The hidden states in a copy of the spool, all of which are at `step`."""
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    marker = json.loads((copy / "spool.json").read_bytes())
    found: dict[int, torch.Tensor] = {}

    def look(batch: int, tensors: Any) -> tuple[Any, dict[str, Any]]:
        found[batch] = tensors["states"].clone()
        return tensors, {}

    Spool(copy, count=len(batches), of=marker["of"]).advance(step, step + 1, look)
    return [found[batch] for batch in range(len(batches))]


# ---------------------------------------------------------------------------------------------------- every family


def test_the_pruned_checkpoint_runs_as_what_was_propagated(made):
    """Loaded and run whole by transformers, against the hidden states that the last layer left in the spool."""
    assert any(kept != list(range(KEEP)) for kept in made.staying.values())
    expected = whole.states(whole.load(made.pruned), batches_of(made.source))[-1]
    for state, reference in zip(made.last, expected, strict=True):
        assert (state - reference).abs().max() == 0.0
        assert reference.abs().max() > 0.1


def test_the_pruned_checkpoint_is_whole_and_keeps_its_layout(made):
    before, after = Checkpoint(made.source).architecture, Checkpoint(made.pruned)
    inspect(made.pruned)
    assert after.architecture.experts == KEEP < before.experts
    fused = any(after.architecture.part(name).kind == "experts" for name in after.tensors)
    assert fused == any(before.part(name).kind == "experts" for name in Checkpoint(made.source).tensors)
    expected = after.architecture.tensors(fused=fused, mtp=bool(before.mtp_layers))
    assert {spec.name: spec.shape for spec in expected if spec.part.need != "rare"} == {
        name: tuple(tensor.shape) for name, tensor in after.tensors.items()
    }
    for other in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (made.pruned / other).read_bytes() == (made.source / other).read_bytes()


def test_experts_router_rows_and_correction_biases_are_the_chosen_ones_and_all_else_is_as_it_was(made):
    before, after = Checkpoint(made.source), Checkpoint(made.pruned)
    seen = set()
    for name in after.tensors:
        part = after.architecture.part(name)
        seen.add(part.kind)
        old = name
        if part.kind == "expert":
            number = made.staying[part.layer][part.expert]
            old = name.replace(f".experts.{part.expert}.", f".experts.{number}.")
        expected = before.tensor(old)
        if part.kind in ("experts", "router"):
            expected = expected[made.staying[part.layer]]
        assert after.tensor(name).dtype == expected.dtype
        assert after.tensor(name).equal(expected), name
    assert {"router", "other"} < seen


@torch.no_grad()
def test_scores_are_those_of_the_definition_on_what_the_pruned_layers_before_put_out(made):
    """REAP over the whole model in transformers, as its definition reads: token by token, expert by expert."""
    model, batches = whole.load(made.source), batches_of(made.source)
    for choice in made.choices:
        if choice.layer >= len(model.get_decoder().layers):
            continue  # the head is no part of that model: it has its own test
        moe = model.get_decoder().layers[choice.layer].mlp
        inputs: list[torch.Tensor] = []
        hook = moe.register_forward_pre_hook(lambda _module, arguments, put=inputs: put.append(arguments[0]))
        whole.states(model, batches)
        hook.remove()
        sums, counts = [0.0] * len(choice.scores), [0] * len(choice.scores)
        for batch, states in zip(batches, inputs, strict=True):
            for x in states[batch.attention_mask.bool()]:
                _, gates, chosen = moe.gate(x[None])
                for gate, expert in zip(gates[0], chosen[0].tolist(), strict=True):
                    g, u = (moe.experts.gate_up_proj[expert] @ x).chunk(2)
                    answer = moe.experts.down_proj[expert] @ (torch.nn.functional.silu(g) * u)
                    sums[expert] += float(gate * answer.norm())
                    counts[expert] += 1
        assert choice.counts == counts
        scores = [total / max(count, 1) for total, count in zip(sums, counts, strict=True)]
        torch.testing.assert_close(torch.tensor(choice.scores), torch.tensor(scores), rtol=1e-5, atol=1e-5)
        assert max(scores) > 0.1
        for part in (moe.experts, moe.gate):
            for name, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
                part._parameters.pop(name, None)
                part.register_buffer(name, tensor[choice.kept])
            part.num_experts = len(choice.kept)


def test_every_layer_with_experts_is_chosen_for_by_its_own_scores(made):
    architecture = Checkpoint(made.source).architecture
    assert [choice.layer for choice in made.choices] == [*architecture.expert_layers, *architecture.mtp_layers]
    assert len({tuple(choice.scores) for choice in made.choices}) == len(made.choices)
    size = architecture.experts // architecture.groups
    for choice in made.choices:
        assert choice.kept == criteria.best(choice.scores, KEEP, architecture.groups)
        in_groups = [sum(expert // size == group for expert in choice.kept) for group in range(architecture.groups)]
        assert set(in_groups) == {KEEP // architecture.groups}


# ----------------------------------------------------------------------------------------- multi-token prediction


@pytest.fixture(scope="module", params=whole.WITH_MTP)
def with_mtp(request, tmp_path_factory) -> Made:
    place = tmp_path_factory.mktemp(request.param)
    return pruned(tiny.make(place / "source", request.param, fused=False, mtp=True), place)


def test_the_head_is_run_on_the_states_before_it_and_the_next_tokens(with_mtp, tmp_path):
    """Its layer by transformers, as one behind the last, on what vLLM would give it."""
    model = whole.load(whole.with_mtp_as_a_layer(with_mtp.source, tmp_path / "whole"))
    stream = LayerStream(Checkpoint(with_mtp.source))
    (number,) = stream.mtp_layers
    layer, call = model.get_decoder().layers[number], {}
    layer.register_forward_pre_hook(lambda _layer, _arguments, keywords: call.update(keywords), with_kwargs=True)
    for batch in batches_of(with_mtp.source, (5, 60, 3, 30)):
        last = whole.states(model, [batch])[number - 1][0]
        expected = whole.mtp_input(with_mtp.source, model, batch, last)
        with stream.loaded(number) as block:
            given, real = block.entry(batch, last), block.real(batch)
            torch.testing.assert_close(given[real], expected[real], rtol=1e-4, atol=1e-5)
            with torch.no_grad():
                assert (block.run(batch, last) - layer(given, **call)).abs().max() == 0.0


def test_the_last_token_of_a_row_does_not_count_for_the_head(with_mtp):
    (number,) = Checkpoint(with_mtp.source).architecture.mtp_layers
    top_k = Checkpoint(with_mtp.source).architecture.top_k
    batches = batches_of(with_mtp.source)
    tokens, rows = sum(int(b.attention_mask.sum()) for b in batches), sum(len(b.input_ids) for b in batches)
    for choice in with_mtp.choices:
        counted = tokens - rows if choice.layer == number else tokens
        assert sum(choice.counts) == top_k * counted


def test_a_head_that_is_dropped_leaves_no_tensor_and_config_says_so(with_mtp, tmp_path):
    staying = {
        layer: kept
        for layer, kept in with_mtp.staying.items()
        if layer in Checkpoint(with_mtp.source).architecture.expert_layers
    }
    surgery.write_pruned(Checkpoint(with_mtp.source), staying, tmp_path / "pruned", drop_mtp=True)
    before, after = Checkpoint(with_mtp.source), Checkpoint(tmp_path / "pruned")
    inspect(tmp_path / "pruned")
    assert after.architecture.mtp_layers == []
    gone = {name for name in before.tensors if before.architecture.part(name).mtp}
    assert gone
    assert not gone & after.tensors.keys()
    whole.load(tmp_path / "pruned")


# --------------------------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_5_moe", "qwen3_moe"])
def test_where_there_is_no_head_to_drop_nothing_else_changes(tmp_path, family):
    """A candidate is not told apart by what becomes of a head that its parent has not, so its bytes must not differ."""
    source = tiny.make(tmp_path / "source", family, fused=False)
    config = json.loads((source / "config.json").read_bytes())
    config.pop("num_nextn_predict_layers", None)
    tiny.write_json(source / "config.json", config)
    checkpoint = Checkpoint(source)
    staying = {layer: [0, 1, 4, 5] for layer in checkpoint.architecture.expert_layers}
    surgery.write_pruned(checkpoint, staying, tmp_path / "kept")
    surgery.write_pruned(checkpoint, staying, tmp_path / "dropped", drop_mtp=True)
    for path in (tmp_path / "kept").iterdir():
        assert (tmp_path / "dropped" / path.name).read_bytes() == path.read_bytes()


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory) -> Made:
    """Hybrid attention, fused experts, a vision wrapper, and a head: every kind of step there is."""
    place = tmp_path_factory.mktemp("hybrid")
    return pruned(tiny.make(place / "source", "qwen3_5_moe", fused=True, mtp=True), place)


@pytest.mark.parametrize("moment", range(3, 75, 6))
def test_killed_anywhere_a_run_goes_on_within_the_layer_to_the_same_choices(hybrid, tmp_path, moment):
    """A process killed at one of the changes that it makes to the spool, of which there are over seventy."""
    stream, batches = LayerStream(Checkpoint(hybrid.source)), batches_of(hybrid.source)
    spool = tmp_path / "spool"

    def work() -> None:
        list(layers.choices(stream, settings_of(), KEEP, batches, spool, slots=1))

    assert processes.end(processes.start(processes.dying_at(moment, work))) == processes.KILLED
    left = {path: path.stat().st_mtime_ns for path in spool.glob("*.states")}
    found = list(layers.choices(stream, settings_of(), KEEP, batches, spool, slots=1))
    assert [choice for choice in found if choice] == hybrid.choices
    assert left or moment < 10


def test_the_number_of_slots_changes_no_bit(hybrid, tmp_path):
    one = choices_of(hybrid.source, tmp_path / "one")
    assert one == hybrid.choices
    stream, batches = LayerStream(Checkpoint(hybrid.source)), batches_of(hybrid.source)
    assert list(layers.choices(stream, settings_of(), KEEP, batches, tmp_path / "many", slots=5)) == one


def test_a_layer_that_is_done_is_not_loaded_again(hybrid, tmp_path, monkeypatch):
    stream, batches = LayerStream(Checkpoint(hybrid.source)), batches_of(hybrid.source)
    going = layers.choices(stream, settings_of(), KEEP, batches, tmp_path / "spool")
    first = [next(going), next(going)]
    going.close()
    again, loaded = LayerStream(Checkpoint(hybrid.source)), []
    load = again.loaded
    monkeypatch.setattr(again, "loaded", lambda layer: loaded.append(layer) or load(layer))
    found = list(layers.choices(again, settings_of(), KEEP, batches, tmp_path / "spool"))
    assert found[:2] == first
    assert loaded == [2, 3, 4]
    assert list(layers.choices(again, settings_of(), KEEP, batches, tmp_path / "spool")) == found
    assert loaded == [2, 3, 4]


def test_states_of_other_tokens_are_not_gone_on_with(hybrid, tmp_path):
    stream = LayerStream(Checkpoint(hybrid.source))
    other = batches_of(hybrid.source, (9, 50))
    going = layers.choices(stream, settings_of(), KEEP, other, tmp_path / "spool")
    next(going)
    going.close()
    assert choices_of(hybrid.source, tmp_path / "spool") == hybrid.choices


def test_what_the_disk_is_asked_for_is_what_is_stated_beforehand(hybrid, tmp_path):
    stream, batches = LayerStream(Checkpoint(hybrid.source)), batches_of(hybrid.source)
    stated = layers.cost(stream.checkpoint, stream.device, settings_of(), batches)
    tokens = sum(batch.input_ids.numel() for batch in batches)
    assert stated.size == tokens * 32 * 4
    assert stated.traffic == stated.size * (1 + 4 * 5)  # four layers and the head, each read and written twice
    going = layers.choices(stream, settings_of(), KEEP, batches, tmp_path / "spool")
    next(going)
    there = sum(path.stat().st_size for path in (tmp_path / "spool").glob("*.states"))
    assert stated.size <= there <= stated.size + 1000 * len(batches)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("tensor", ["self_attn.o_proj", "mlp.experts.3.down_proj"])
def test_a_layer_that_puts_out_nan_is_named(plain, tmp_path, layer, tensor):
    folder = tmp_path / "damaged"
    shutil.copytree(plain, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[f"model.layers.{layer}.{tensor}.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(IntegrityError, match=f"layer {layer} puts out NaN"):
        choices_of(folder, tmp_path / "spool")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensor", ["weight", "e_score_correction_bias"])
def test_a_router_that_holds_nan_is_named_though_what_its_experts_answer_is_finite(tmp_path, tensor, bad):
    folder = tiny.make(tmp_path / "damaged", "deepseek_v3", fused=False)
    name = f"model.layers.2.mlp.gate.{tensor}"
    router = Checkpoint(folder).tensor(name)
    router.view(-1)[0] = bad
    whole.replace_tensors(folder, {name: router})
    with pytest.raises(IntegrityError, match="the router of layer 2 holds NaN") as refused:
        choices_of(folder, tmp_path / "spool")
    assert name in str(refused.value.where)


def test_a_router_that_overflows_is_named(plain, tmp_path):
    """Its weights are NaN, and what its experts answer is finite."""
    folder = tmp_path / "damaged"
    shutil.copytree(plain, folder)
    name = "model.layers.1.mlp.gate.weight"
    whole.replace_tensors(folder, {name: torch.full_like(Checkpoint(folder).tensor(name), 3e38)})
    with pytest.raises(IntegrityError, match="layer 1 puts out NaN"):
        choices_of(folder, tmp_path / "spool")


# --------------------------------------------------------------------------------------------------------- on disk


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_moe"])
def test_shards_and_their_index_are_those_of_the_source(tmp_path, family, shards):
    source = tiny.make(tmp_path / "source", family, fused=family == "qwen3_5_moe", shards=shards)
    before = Checkpoint(source)
    staying = {layer: [0, 2, 3, 5] for layer in before.architecture.expert_layers}
    surgery.write_pruned(before, staying, tmp_path / "pruned")
    after = Checkpoint(tmp_path / "pruned")
    assert after.shards == before.shards
    inspect(tmp_path / "pruned")
    for name, shard in after.weight_map.items():
        if ".experts." not in name:
            assert shard == before.weight_map[name]


def test_the_config_says_how_many_are_left_and_nothing_else_of_it_changes(tmp_path):
    source = tiny.make(tmp_path / "source", "qwen3_5_moe", fused=True)
    surgery.write_pruned(Checkpoint(source), {layer: [0, 1, 2, 5] for layer in range(4)}, tmp_path / "pruned")
    was, now = ((folder / "config.json").read_text() for folder in (source, tmp_path / "pruned"))
    assert now == was.replace('"num_experts": 8', '"num_experts": 4') != was


# --------------------------------------------------------------------------------------------------------- the stage


@dataclass(frozen=True)
class Place:
    """A registry with the candidate `parent`, and a project beside it."""

    store: Store
    project: Path
    root: Path

    def recipe(self, name: str = "child", parent: str = "parent", **settings: Any) -> Path:
        step = {"compression": 0.25, "mix": "mix.yaml"} | settings
        path = self.project / f"{name}.yaml"
        path.write_text(json.dumps({"name": name, "parent": parent, "steps": [{"prune": step}]}), encoding="utf-8")
        return path

    def job(self, name: str = "child", **settings: Any) -> Job:
        recipe: Recipe = read_recipe(self.recipe(name, **settings))
        return Job(
            store=self.store,
            project=self.project,
            recipe=recipe,
            settings=recipe.steps[0].settings,
            source=self.store.candidate(recipe.parent),
            makes=name,
            replace=False,
        )

    def pruned(self, name: str = "child", **settings: Any) -> Candidate:
        prune(self.job(name, **settings))
        return self.store.candidate(name)

    def mix(self, name: str = "mix", count: int = 6, seed: int = 0) -> None:
        text = f"name: {name}\nseed: {seed}\ndatasets: [{{path: rows.jsonl, count: {count}}}]\n"
        (self.project / f"{name}.yaml").write_text(text, encoding="utf-8")

    def files(self) -> set[str]:
        """Everything in the registry but locks, which mean nothing."""
        return {
            str(path.relative_to(self.root))
            for path in self.root.rglob("*")
            if path.relative_to(self.root).parts[0] != "locks"
        }


@pytest.fixture
def place(tmp_path, plain) -> Place:
    store = Store.init(tmp_path / "models")
    store.add("parent", plain)
    project = tmp_path / "project"
    project.mkdir()
    (project / "rows.jsonl").write_bytes(chats(*range(3, 60, 7)))
    made = Place(store, project, tmp_path / "models")
    made.mix()
    return made


def options(place: Place, recipe: Path) -> list[Any]:
    return ["--root", place.root, "--project", place.project, "--recipe", recipe]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}


def without_torch(place: Place, recipe: Path) -> subprocess.CompletedProcess[str]:
    """The stage as a process that can import nothing heavy."""
    code = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'accelerate', 'safetensors')))\n"
    code += "import runpy; runpy.run_module('stages.prune', run_name='__main__')"
    command = [sys.executable, "-c", code, *map(str, options(place, recipe))]
    return subprocess.run(command, cwd=PROJECT, env=environment(), capture_output=True, text=True, check=False)


def test_a_candidate_is_made_and_says_what_it_was_made_from(place, capsys):
    child, parent = place.pruned(compression=0.25), place.store.candidate("parent")
    inputs = child.manifest.inputs
    assert child.manifest.shape.experts == 6
    assert inputs.op == "prune"
    assert inputs.parent == parent.digest
    assert inputs.settings == {
        "compression": "0.25",
        "criterion": "reap",
        "renormalize_router": None,
        "sequence_length": 2048,
        "packing": False,
    }
    assert len(place.store.read(inputs.mix.rows).splitlines()) == 6
    assert inputs.seed is None
    assert not any(place.store.layout.staging.iterdir())
    said = capsys.readouterr()
    assert said.out.splitlines() == [line for line in said.out.splitlines() if line.startswith("child: 6 of 8 experts")]
    assert whole.load(child.folder).config.num_experts == 6


def test_the_scores_are_kept_beside_the_model(place):
    child = place.pruned()
    scores = json.loads((place.store.layout.candidate("child") / "attachments" / "scores.json").read_bytes())
    assert scores["criterion"] == "reap"
    assert [layer["layer"] for layer in scores["layers"]] == [0, 1, 2]
    source, pruned = Checkpoint(place.store.candidate("parent").folder), Checkpoint(child.folder)
    for layer in scores["layers"]:
        assert layer["kept"] == criteria.best(layer["scores"], 6)
        name = f"model.layers.{layer['layer']}.mlp.gate.weight"
        assert pruned.tensor(name).equal(source.tensor(name)[layer["kept"]])
    assert not (child.folder / "scores.json").exists()


def test_the_same_inputs_give_the_same_candidate_under_any_name(place):
    assert place.pruned("one").digest == place.pruned("two", compression=0.250).digest


@pytest.mark.parametrize(
    "change", [{"compression": 0.5}, {"renormalize_router": False}, {"sequence_length": 16}, {"criterion": "random"}]
)
def test_another_setting_gives_another_candidate(place, change):
    assert place.pruned("one").digest != place.pruned("two", **change).digest


def test_the_seed_is_part_of_a_candidate_only_where_something_is_drawn(place):
    assert place.pruned("one", seed=0).digest == place.pruned("two", seed=1).digest
    drawn = [place.pruned(f"random{seed}", criterion="random", seed=seed) for seed in range(3)]
    assert len({candidate.manifest.files["model.safetensors"].digest for candidate in drawn}) == 3
    assert drawn[0].manifest.inputs.mix is not None


def chosen(place: Place, name: str) -> dict[int, dict[str, Any]]:
    scores = json.loads((place.store.layout.candidate(name) / "attachments" / "scores.json").read_bytes())
    return {each["layer"]: each for each in scores["layers"]}


@pytest.mark.parametrize("criterion", ["reap", "random"])
def test_the_head_and_no_dense_layer_is_pruned_by_scores_of_its_own(place, tmp_path, criterion):
    place.store.add("deep", tiny.make(tmp_path / "deep", "deepseek_v3", fused=False, mtp=True))
    child = place.pruned(parent="deep", compression=0.5, criterion=criterion)
    found = chosen(place, "child")
    assert list(found) == [1, 2, 3]
    assert len({tuple(each["scores"]) for each in found.values()}) == 3
    assert (child.manifest.shape.experts, child.manifest.inputs.settings["mtp"]) == (4, "prune")
    for each in found.values():
        assert sum(expert < 4 for expert in each["kept"]) == 2, "as many in each of the two groups"


@pytest.mark.parametrize("criterion", ["reap", "random"])
def test_the_head_is_left_out_if_the_recipe_says_so(place, tmp_path, criterion):
    place.store.add("deep", tiny.make(tmp_path / "deep", "deepseek_v3", fused=False, mtp=True))
    child = place.pruned(parent="deep", compression=0.5, criterion=criterion, mtp="drop")
    assert list(chosen(place, "child")) == [1, 2]
    assert child.manifest.inputs.settings["mtp"] == "drop"
    assert not any(name.startswith("model.layers.3.") for name in Checkpoint(child.folder).tensors)
    assert read_config(child.folder)["num_nextn_predict_layers"] == 0
    whole.load(child.folder)


def test_what_a_group_needs_is_kept_or_refused(place, tmp_path):
    place.store.add("deep", tiny.make(tmp_path / "deep", "deepseek_v3", fused=False))
    assert place.pruned("most", parent="deep", compression=0.3).manifest.shape.experts == 6
    refused(place, place.recipe(parent="deep", compression=0.75), "leaves 2 of 8", "choose at most 0.5")


def test_a_mix_of_other_rows_gives_another_candidate(place):
    place.mix("other", seed=1)
    assert place.pruned("one").digest != place.pruned("two", mix="other.yaml").digest


def test_a_candidate_made_again_is_found_without_torch(place):
    place.pruned()
    before = place.files()
    found = without_torch(place, place.recipe())
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("child: made already")
    assert place.files() == before


def test_a_name_made_from_something_else_is_refused_with_the_difference(place):
    place.pruned(compression=0.25)
    with pytest.raises(UsageError, match=r"settings.compression: 0.25 / 0.5"):
        place.pruned(compression=0.5)


@pytest.mark.parametrize(
    ("signal_sent", "moment", "codes"),
    [
        (signal.SIGKILL, "*", [-9]),
        (signal.SIGTERM, "*/spool/00000.json", [130]),
        (signal.SIGKILL, "*/spool/00001.json", [-9]),
        (signal.SIGKILL, "*/model/*", [-9, 0]),  # the end is near enough to be missed on a slow machine
    ],
    ids=["killed at the start", "told to end within a layer", "killed within a layer", "killed while writing"],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(place, signal_sent, moment, codes):
    (place.project / "rows.jsonl").write_bytes(chats(*([400] * 12)))
    place.mix(count=12)
    running = subprocess.Popen(
        [sys.executable, "-m", "stages.prune", *map(str, options(place, place.recipe()))],
        cwd=PROJECT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while not any(place.store.layout.staging.glob(moment)) and running.poll() is None:
        time.sleep(0.002)
    running.send_signal(signal_sent)
    _, said = running.communicate(timeout=20)
    assert running.returncode in codes, said
    assert b"Traceback" not in said
    again, undisturbed = place.pruned(), place.pruned("undisturbed", sequence_length=2049)
    assert again.manifest.files == undisturbed.manifest.files
    assert place.store.log.verify() == 3


def test_what_another_run_left_in_the_steps_folder_is_not_taken_for_finished(place):
    whole = place.pruned("whole")
    left = place.store.layout.step(whole.manifest.inputs.identity()) / "model"
    left.mkdir(parents=True)
    shard = bytearray((whole.folder / "model.safetensors").read_bytes())
    shard[-1] ^= 1  # of the right size, and with the right header
    (left / "model.safetensors").write_bytes(shard)
    (left / "rubbish.txt").write_text("rubbish")
    assert place.pruned("again").digest == whole.digest


# --------------------------------------------------------------------------------------------------------- bad input


def refused(place: Place, recipe: Path, *says: str) -> None:
    """The stage ends with 2, before torch is imported, says what is wrong, and leaves everything as it was."""
    before = place.files()
    ended = without_torch(place, recipe)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    for part in says:
        assert part in ended.stderr
    assert place.files() == before


def test_a_depth_that_leaves_fewer_experts_than_a_token_needs_is_refused(place):
    recipe = place.recipe(compression=0.9)
    refused(place, recipe, "leaves 1 of 8", f"{recipe}, steps[0].prune.compression", "choose at most 0.75")


def test_a_depth_that_removes_nothing_is_refused(place):
    refused(place, place.recipe(compression=0.01), "removes none", "choose at least 0.125")


def test_an_unknown_key_is_refused(place):
    refused(place, place.recipe(compresion=0.5), "steps[0].prune.compresion: unknown key")


def test_a_missing_mix_is_refused(place):
    refused(place, place.recipe(mix="none.yaml"), "none.yaml", "mix")


def test_a_missing_parent_is_refused(place):
    refused(place, place.recipe(parent="parrot"), "'parrot'", "the nearest is parent")


def test_a_mix_that_asks_for_more_rows_than_there_are_is_refused(place):
    place.mix(count=10)
    refused(place, place.recipe(), "takes 10 rows of rows.jsonl, which has 9")


def test_a_pruned_parent_is_refused(place):
    place.pruned("first")
    refused(place, place.recipe(parent="first"), "first is pruned already", "steps[0].prune", "stacked: true")


def test_a_pruned_parent_is_pruned_again_if_the_recipe_says_so(place):
    place.pruned("first")
    again = place.pruned("again", parent="first", stacked=True)
    assert again.manifest.shape.experts == 5
    assert again.manifest.inputs.parent == place.store.candidate("first").digest
    inspect(again.folder)


def test_a_quantised_parent_is_refused(place, tmp_path):
    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size"), 128)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64}
    write_model(tmp_path / "even", num_hidden_layers=1, **sizes, **heads)
    write_fp8(tmp_path / "even", tmp_path / "fp8", what="quantize")
    place.store.add("quantised", tmp_path / "fp8")
    refused(place, place.recipe(parent="quantised"), "quantised is quantised (fp8-block)", "steps[0].prune")


def test_a_model_without_experts_is_refused(place, tmp_path):
    place.store.add("dense", write_model(tmp_path / "dense", mlp_only_layers=[0, 1, 2]))
    refused(place, place.recipe(parent="dense"), "dense has no layer with experts", "steps[0].prune")


def test_a_token_that_the_model_does_not_know_is_refused(place, plain, tmp_path):
    shutil.copytree(plain, tmp_path / "extra")
    tokenizer = json.loads((tmp_path / "extra" / "tokenizer.json").read_bytes())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | {"id": 5000, "content": "<|im_start|>user"})
    tiny.write_json(tmp_path / "extra" / "tokenizer.json", tokenizer)
    place.store.add("extra", tmp_path / "extra")
    before = place.files()
    with pytest.raises(UsageError, match="the tokenizer gives the token"):
        place.pruned(parent="extra")
    assert place.files() == before


def test_a_device_that_is_not_there_is_refused(place):
    before = place.files()
    command = [sys.executable, "-m", "stages.prune", *map(str, options(place, place.recipe())), "--device", "cuda"]
    hidden = environment() | {"CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, cwd=PROJECT, env=hidden, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "there is no CUDA device here" in ended.stderr
    assert place.files() == before


def test_a_row_that_the_template_refuses_leaves_nothing_behind(place, plain, tmp_path):
    shutil.copytree(plain, tmp_path / "strict")
    (tmp_path / "strict" / "chat_template.jinja").write_text("{{ raise_exception('not like this') }}")
    place.store.add("strict", tmp_path / "strict")
    before = place.files()
    with pytest.raises(UsageError, match="chat template refuses the row: not like this"):
        place.pruned(parent="strict")
    assert place.files() == before
