"""Every family that is trained goes the whole way, and packed chats do not see each other."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from registry.recipes import Recipe, Train
from registry.store import Store
from registry.verify import verify
from stages.common.checkpoint import Checkpoint
from stages.common.job import Job
from stages.train import check, data, train
from stages.train.rehearsal import rehearse
from tests.support import whole
from tests.support.adapted import FAMILIES, HYBRID, source

RECIPE = Recipe.model_validate({"name": "r", "parent": "p", "steps": [{"gate": {"policy": "p"}}]})


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with a mix and a reference."""
    folder = tmp_path_factory.mktemp("project")
    for name, begin, count in (("mix", 0, 6), ("reference", 50, 2)):
        rows = [
            {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": "x" * (n % 9 + 1)}]}
            for n in range(begin, begin + count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(
            json.dumps({"name": name, "datasets": [{"path": f"{name}.jsonl", "count": count}]})
        )
    return folder


def job(
    project: Path, tmp_path: Path, family: str, *, width: int = 64, made: dict[str, Any] | None = None, **changes: Any
) -> Job:
    """
    Args:
        made: of the checkpoint, what is not as usual; changes: of the recipe.
    """
    store = Store.init(tmp_path / "models")
    candidate = store.add("tiny", source(tmp_path / "tiny", family, width=width, **(made or {})).folder)
    settings = {"mix": "mix.yaml", "reference": "reference.yaml", "sequence_length": 192, "lora": {"rank": 2}}
    settings |= {"max_steps": 2, "evaluate_every": 1, "gradient_accumulation": 1, "tolerance": 10, "limit_gap": 10}
    return Job(store, project, RECIPE, Train.model_validate(settings | changes), candidate, "made", False, "r", "cpu")


@pytest.mark.parametrize(
    ("family", "width", "experts"),
    [(family, 64, "nf4") for family in FAMILIES]
    + [("qwen3_moe", 50, "nf4"), ("mixtral", 40, "nf4"), ("qwen3_moe", 50, "bf16")],
)
def test_every_family_is_trained_measured_merged_and_loads(project, tmp_path, family, width, experts):
    """Whatever the width: neither blocks of four bits nor the 16 bytes of grouped products need divide it."""
    work = job(project, tmp_path, family, width=width, experts=experts, learning_rate="0.05")
    train(work)
    assert verify(work.store, "made", full=True) == []
    made, before = work.store.candidate("made"), Checkpoint(work.source.folder)
    curves = json.loads((work.store.layout.candidate("made") / "attachments" / "training.json").read_bytes())
    assert [point["step"] for point in curves["points"]] == [0, 1, 2]
    after = Checkpoint(made.folder)
    changed = [name for name in before.tensors if not before.tensor(name).equal(after.tensor(name))]
    assert any("gate.weight" in name for name in changed)
    assert not any(".experts" in name or "mtp" in name or "visual" in name for name in changed)
    whole.load(made.folder)


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("qwen3_moe", {"num_hidden_layers": 1}, "1 of 1 layers"),
        ("qwen3_5_moe", {"num_hidden_layers": 1, "layer_types": ["full_attention"]}, "1 of 1 layers"),
        ("qwen3_moe", {"mlp_only_layers": [0, 1]}, "3 of 3 layers"),
        ("qwen3_5_moe_text", {}, "2 of 4 layers"),
    ],
)
def test_a_rehearsal_takes_layers_with_experts_and_no_more_than_there_are(
    project, tmp_path, capsys, family, changes, said
):
    rehearse(job(project, tmp_path, family, made=changes))
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("targets", [["router"], ["attention"]])
def test_one_target_alone_is_trained(project, tmp_path, targets):
    work = job(project, tmp_path, "qwen3_moe", learning_rate="0.05", lora={"rank": 2, "targets": targets})
    train(work)
    before, after = (
        load_file(each.folder / "model.safetensors") for each in (work.source, work.store.candidate("made"))
    )
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert all(("mlp.gate" in name) == (targets == ["router"]) for name in changed)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(HYBRID)))
def test_packed_chats_do_not_see_each_other(tmp_path, family):
    """As the trainer gives them to the model, beside each by itself."""
    folder = source(tmp_path, family).folder
    model, tokenizer = whole.load(folder), AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer.encode(text, add_special_tokens=False) for text in ("first of them", "second", "and a third")]
    chats = [data.Chat(array("i", text), array("i", text)) for text in texts]
    (row,) = data.sequences(chats, longest=64, packing=True)
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([row])
    batch.pop("labels")
    with torch.no_grad():
        packed = model(**batch, use_cache=False).logits[0]
        begin = 0
        for length in row["seq_lengths"]:
            ids = torch.tensor([row["input_ids"][begin : begin + length]])
            torch.testing.assert_close(packed[begin : begin + length], model(ids, use_cache=False).logits[0])
            begin += length


def test_the_loss_of_a_step_is_that_of_its_answers_whether_they_are_packed_or_not(project, tmp_path):
    """As the trainer sums it: over batches, padding and sequences of several chats."""
    losses = []
    for number, (packing, batch_size) in enumerate([(False, 1), (False, 3), (True, 1)]):
        changes = {"packing": packing, "batch_size": batch_size, "gradient_accumulation": 6 // batch_size}
        work = job(project, tmp_path / str(number), "qwen3_moe", max_steps=None, experts="bf16", **changes)
        train(work)
        curves = (work.store.layout.candidate("made") / "attachments" / "training.json").read_bytes()
        losses += json.loads(curves)["losses"]
    assert len(losses) == 3
    assert max(losses) - min(losses) < 1e-5 * losses[0]


@pytest.mark.parametrize("family", HYBRID)
def test_chats_are_not_packed_where_linear_attention_would_carry_one_into_the_next(project, tmp_path, family):
    report = check(job(project, tmp_path, family, packing=True))
    assert not report.packing
    assert report.reading.amount.sequences == 2
