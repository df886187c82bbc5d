"""Pruning: which experts stay, that what is written is what was run, and that bad input leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from gates.errors import IntegrityError, UsageError
from registry.recipes import Prune, Recipe, read_recipe
from registry.store import Candidate, Store
from stages.common import calibration
from stages.common.checkpoint import Checkpoint
from stages.common.stage import Job
from stages.common.streaming import LayerStream
from stages.prune import criteria, prune, surgery
from stages.quantize import write_fp8
from tests.support import tiny
from tests.support.moe import whole_model, write_model

PROJECT = Path(__file__).resolve().parents[2]
SHAPES = {
    "top 2 of 8": {},
    "top 3 of 10, unnormalised": {"num_experts": 10, "num_experts_per_tok": 3, "norm_topk_prob": False},
    "a dense layer between": {"mlp_only_layers": [1]},
}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES.keys())
def model(request, tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), **request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("plain"))


def chats(*lengths: int) -> bytes:
    rows = ({"messages": [{"role": "user", "content": chr(97 + n) * length}]} for n, length in enumerate(lengths))
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def batches_of(folder: Path, *, batch_tokens: int = 200) -> list[calibration.Batch]:
    rows = chats(5, 60, 3, 90, 17, 40, 1)
    return calibration.batches(rows, AutoTokenizer.from_pretrained(folder), 80, batch_tokens=batch_tokens)


def choices_of(folder: Path, keep: int, **settings: Any) -> list[criteria.Choice]:
    given_settings = Prune(compression=Decimal("0.5"), mix="mix.yaml", **settings)
    found = criteria.choices(Checkpoint(folder), given_settings, keep, batches_of(folder))
    return [choice for choice in found if choice is not None]


# ------------------------------------------------------------------------------------------------------------ scores


def naive_scores(
    folder: Path, layer: int, renormalize: bool | None, before: list[criteria.Choice]
) -> tuple[list[float], list[int]]:
    """REAP over the whole model, written down as its definition reads: token by token, expert by expert.

    Args:
        before: the choices of the layers before, which are pruned so.
    """
    model = whole_model(folder)
    for choice in before:
        pruned = model.model.layers[choice.layer].mlp
        for part, name in ((pruned.experts, "gate_up_proj"), (pruned.experts, "down_proj"), (pruned.gate, "weight")):
            setattr(part, name, torch.nn.Parameter(getattr(part, name)[choice.kept]))
        pruned.experts.num_experts = len(choice.kept)
    moe = model.model.layers[layer].mlp
    inputs: list[torch.Tensor] = []
    moe.register_forward_pre_hook(lambda _module, arguments: inputs.append(arguments[0]))
    sums, counts = [0.0] * moe.experts.num_experts, [0] * moe.experts.num_experts
    for batch in batches_of(folder):
        inputs.clear()
        with torch.no_grad():
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            for x, real in zip(inputs[0].flatten(0, 1), batch.attention_mask.flatten(), strict=True):
                if not real:
                    continue
                everywhere = torch.softmax(moe.gate.weight @ x, dim=-1)
                gates, chosen = everywhere.topk(moe.gate.top_k)
                if renormalize or (renormalize is None and model.config.norm_topk_prob):
                    gates = gates / gates.sum()
                for gate, expert in zip(gates, chosen.tolist(), strict=True):
                    g, u = (moe.experts.gate_up_proj[expert] @ x).chunk(2)
                    answer = moe.experts.down_proj[expert] @ (torch.nn.functional.silu(g) * u)
                    sums[expert] += float(gate * answer.norm())
                    counts[expert] += 1
    return [total / max(count, 1) for total, count in zip(sums, counts, strict=True)], counts


@pytest.mark.parametrize("renormalize", [None, True, False])
def test_scores_are_those_of_the_definition_on_what_the_pruned_layers_before_put_out(model, renormalize):
    choices = choices_of(model, 4, renormalize_router=renormalize)
    for number, choice in enumerate(choices):
        scores, counts = naive_scores(model, choice.layer, renormalize, choices[:number])
        assert choice.counts == counts
        torch.testing.assert_close(torch.tensor(choice.scores), torch.tensor(scores), rtol=1e-5, atol=1e-5)
        assert max(scores) > 1


def test_renormalisation_changes_the_scores_and_nothing_else(plain):
    as_the_model, without = choices_of(plain, 7), choices_of(plain, 7, renormalize_router=False)
    assert as_the_model[0].scores != without[0].scores
    assert as_the_model[0].counts == without[0].counts


def test_padding_is_not_counted(plain):
    """Alone in its batch no row is padded; together most are."""
    settings = Prune(compression=Decimal("0.5"), mix="mix.yaml")
    together, alone = (
        next(criteria.choices(Checkpoint(plain), settings, 4, batches_of(plain, batch_tokens=tokens)))
        for tokens in (10_000, 1)
    )
    assert together.counts == alone.counts
    torch.testing.assert_close(torch.tensor(together.scores), torch.tensor(alone.scores))


def test_an_expert_that_saw_no_token_scores_nothing_and_goes_first(plain):
    choice = next(choice for choice in choices_of(plain, 7) if 0 in choice.counts)
    unasked = [expert for expert, count in enumerate(choice.counts) if not count]
    assert all(choice.scores[expert] == 0 for expert in unasked)
    assert set(range(8)) - set(choice.kept) <= set(unasked)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.data())
def test_the_best_stay_and_of_equals_the_first(scores, data):
    keep = data.draw(st.integers(1, len(scores)))
    kept = criteria.best(scores, keep)
    assert len(kept) == keep
    assert kept == sorted(set(kept))
    gone = [expert for expert in range(len(scores)) if expert not in kept]
    assert all((scores[stays], -stays) > (scores[goes], -goes) for stays in kept for goes in gone)


def test_chance_differs_by_seed_and_layer_and_not_by_data(plain):
    first, again, other = (choices_of(plain, 4, criterion="random", seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert [choice.kept for choice in first] != [choice.kept for choice in other]
    assert len({tuple(choice.kept) for choice in first + other}) > 3
    chosen = criteria.choices(
        Checkpoint(plain), Prune(compression=Decimal("0.5"), mix="x", criterion="random"), 4, batches=[]
    )
    assert list(chosen) == first


def test_chance_leaves_dense_layers_alone(tmp_path):
    folder = write_model(tmp_path, mlp_only_layers=[1])
    assert [choice.layer for choice in choices_of(folder, 4, criterion="random")] == [0, 2]


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_that_puts_out_nan_is_named(plain, tmp_path, layer):
    folder = tmp_path / "damaged"
    shutil.copytree(plain, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[f"model.layers.{layer}.self_attn.o_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(IntegrityError, match=f"layer {layer} puts out NaN"):
        choices_of(folder, 4)


# --------------------------------------------------------------------------------------------------------- on disk


def prune_folder(source: Path, target: Path, keep: int) -> dict[int, list[int]]:
    staying = {choice.layer: choice.kept for choice in choices_of(source, keep)}
    surgery.write_pruned(Checkpoint(source), staying, target)
    return staying


def test_what_is_written_runs_as_what_was_propagated(model, tmp_path):
    """The whole pruned model, loaded by transformers, against the layers pruned in memory one after another."""
    staying = prune_folder(model, tmp_path / "pruned", 5)
    assert any(kept != list(range(5)) for kept in staying.values())
    batches = batches_of(model)
    stream = LayerStream(Checkpoint(model))
    states = stream.embed(batches)
    pruned = whole_model(tmp_path / "pruned")
    expected: list[torch.Tensor] = []
    pruned.model.layers[-1].register_forward_hook(lambda _module, _arguments, output: expected.append(output))
    with torch.no_grad():
        for batch in batches:
            pruned(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    for layer in range(stream.layers):
        with stream.loaded(layer) as block:
            if block.experts:
                block.keep(staying[layer])
            states = block.run(states)
    for state, whole in zip(states, expected, strict=True):
        assert (state - whole).abs().max() == 0.0


@pytest.mark.parametrize("shards", [1, 3])
def test_experts_and_router_rows_are_the_chosen_ones_and_all_else_is_as_it_was(tmp_path, shards):
    source = tiny.write_checkpoint(tmp_path / "source", experts=6, layers=3, shards=shards)
    staying = {0: [0, 2, 3, 5], 1: [1, 2, 3, 4], 2: [2, 3, 4, 5]}
    surgery.write_pruned(Checkpoint(source), staying, tmp_path / "pruned")
    before, after = Checkpoint(source), Checkpoint(tmp_path / "pruned")
    expected = {}
    for name in before.tensors:
        parts = name.split(".")
        kept = staying[int(parts[2])] if parts[1] == "layers" else []
        if ".experts." in name:
            if int(parts[5]) in kept:
                renamed = ".".join([*parts[:5], str(kept.index(int(parts[5]))), *parts[6:]])
                expected[renamed] = before.tensor(name)
        elif name.endswith("mlp.gate.weight"):
            expected[name] = before.tensor(name)[kept]
        else:
            expected[name] = before.tensor(name)
    assert after.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert after.tensor(name).dtype == tensor.dtype
        assert after.tensor(name).equal(tensor), name


def test_the_config_says_how_many_are_left_and_nothing_else_of_it_changes(tmp_path):
    source = tiny.write_checkpoint(tmp_path / "source", experts=6)
    surgery.write_pruned(Checkpoint(source), {0: [0, 1, 2, 3], 1: [2, 3, 4, 5]}, tmp_path / "pruned")
    was, now = ((folder / "config.json").read_text() for folder in (source, tmp_path / "pruned"))
    assert now == was.replace('"num_experts": 6', '"num_experts": 4') != was
    for other in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "pruned" / other).read_bytes() == (source / other).read_bytes()


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
    }
    assert len(place.store.read(inputs.mix.rows).splitlines()) == 6
    assert inputs.seed is None
    assert not any(place.store.layout.staging.iterdir())
    said = capsys.readouterr()
    assert said.out.splitlines() == [line for line in said.out.splitlines() if line.startswith("child: 6 of 8 experts")]
    assert whole_model(child.folder).config.num_experts == 6


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
        (signal.SIGTERM, "*", [130]),
        (signal.SIGKILL, "*/model/*", [-9, 0]),  # the end is near enough to be missed on a slow machine
    ],
    ids=["killed at the start", "told to end", "killed while writing"],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(place, signal_sent, moment, codes):
    (place.project / "rows.jsonl").write_bytes(chats(*([400] * 30)))
    place.mix(count=30)
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
    refused(place, place.recipe(parent="parrot"), "'parrot'", "there is parent")


def test_a_mix_that_asks_for_more_rows_than_there_are_is_refused(place):
    place.mix(count=10)
    refused(place, place.recipe(), "takes 10 rows of rows.jsonl, which has 9")


def test_a_pruned_parent_is_refused(place):
    place.pruned("first")
    refused(place, place.recipe(parent="first"), "first is pruned already", "steps[0].prune")


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


def test_a_row_that_the_template_refuses_leaves_nothing_behind(place, plain, tmp_path):
    shutil.copytree(plain, tmp_path / "strict")
    (tmp_path / "strict" / "chat_template.jinja").write_text("{{ raise_exception('not like this') }}")
    place.store.add("strict", tmp_path / "strict")
    before = place.files()
    with pytest.raises(UsageError, match="chat template refuses the row: not like this"):
        place.pruned(parent="strict")
    assert place.files() == before
