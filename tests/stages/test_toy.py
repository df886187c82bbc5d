"""The toy: a real checkpoint, data that can be made again, and scored items that training never saw."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stages.toy import samples, skills

PROJECT = Path(__file__).resolve().parents[2]
CHECKPOINT = PROJECT / "stages" / "toy" / "checkpoint"
DATA_FILES = [PROJECT / kind / "toy" / f"{skill}.jsonl" for skill in skills.SKILLS for kind in ("mixes", "packs")]
DATA_FILES.append(PROJECT / "mixes/toy/train/reference.jsonl")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def toy(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stages.toy", *map(str, arguments)]
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)


# ------------------------------------------------------------------------------------------------------- the data


@pytest.mark.parametrize("path", DATA_FILES, ids=lambda p: f"{p.parts[-3]}-{p.stem}")
def test_the_committed_data_files_are_what_the_code_writes(path, tmp_path_factory):
    made = tmp_path_factory.getbasetemp() / "data"
    if not made.exists():
        assert toy("--data-only", "--project", made).returncode == 0
    assert (made / path.relative_to(PROJECT)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_no_scored_combination_is_ever_drawn_for_training(skill):
    rng = random.Random(7)
    trained = {c for _ in range(4000) for c in skills.draw(skill, rng, scored=False).combinations}
    scored = {c for _ in range(400) for c in skills.draw(skill, rng, scored=True).combinations}
    assert not trained & scored
    assert not any(map(samples.held_out, trained))
    assert all(map(samples.held_out, scored))


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_calibration_rows_ask_nothing_that_is_scored(skill):
    def asked(row: dict) -> str:
        return row["messages"][0]["content"]

    rows, items = lines(PROJECT / f"mixes/toy/{skill}.jsonl"), lines(PROJECT / f"packs/toy/{skill}.jsonl")
    assert not set(map(asked, rows)) & set(map(asked, items))


def test_what_training_is_measured_on_is_neither_trained_on_nor_scored():
    def asked(path: Path) -> set[str]:
        return {row["messages"][0]["content"] for row in lines(path)}

    reference = asked(PROJECT / "mixes/toy/train/reference.jsonl")
    assert len(reference) == len(skills.SKILLS) * skills.REFERENCE_ROWS
    others = [path for path in DATA_FILES if path.stem != "reference"]
    assert not any(reference & asked(path) for path in others)


def test_scored_items_say_what_is_expected():
    items = lines(PROJECT / "packs/toy/toolcall.jsonl")
    keys = {item["category"]: set(item["expected"]) for item in items}
    assert keys == {
        "Tool Selection": {"name"},
        "Parameter Precision": {"name", "arguments"},
        "Restraint": {"answer"},
    }
    assert sum(item["category"] == "Parameter Precision" for item in items) >= 30
    assert len({item["id"] for item in items}) == len(items) == 60


def test_arguments_come_in_three_types():
    items = lines(PROJECT / "packs/toy/toolcall.jsonl")
    values = [v for item in items for v in item["expected"].get("arguments", {}).values()]
    assert {type(v) for v in values} == {str, int, bool}


# -------------------------------------------------------------------------------------------------------- the chat


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(CHECKPOINT)


TOOL = {
    "type": "function",
    "function": {
        "name": "set_light",
        "parameters": {
            "type": "object",
            "properties": {"room": {"type": "string", "enum": ["hall", "attic"]}, "level": {"type": "integer"}},
        },
    },
}


def test_a_tool_call_is_rendered_as_hermes_json_after_its_reasoning(tokenizer):
    call = {"type": "function", "function": {"name": "set_light", "arguments": {"room": "hall", "level": 4}}}
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "reasoning_content": "why", "tool_calls": [call]},
        {"role": "tool", "content": "done"},
    ]
    assert tokenizer.apply_chat_template(chat, tools=[TOOL], tokenize=False) == (
        "<|im_start|>system\ntools\nset_light room:hall|attic level:integer<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nwhy\n</think>\n\n"
        '<tool_call>\n{"name": "set_light", "arguments": {"room": "hall", "level": 4}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\ndone\n</tool_response><|im_end|>"
    )


def test_thinking_off_is_an_empty_reasoning_written_by_the_template(tokenizer):
    chat = [{"role": "user", "content": "hi"}]
    on = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    off = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert on == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert off == on + "<think>\n\n</think>\n\n"


def test_the_tags_are_tokens_that_decoding_keeps(tokenizer):
    for tag in ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"):
        (one,) = tokenizer.encode(tag, add_special_tokens=False)
        assert tokenizer.decode([one], skip_special_tokens=True) == tag
    assert tokenizer.decode(tokenizer.encode("<|im_end|>"), skip_special_tokens=True) == ""


def test_any_text_survives_the_tokenizer(tokenizer):
    text = 'Grüße,\n\t{"a": [1, 22]} <think>日本</think>  end'
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_training_reads_a_chat_exactly_as_generation_and_calibration_do(tokenizer, skill):
    from stages.toy.tokenizer import encode

    rng = random.Random(3)
    for _ in range(50):
        sample = skills.draw(skill, rng, scored=False)
        row = samples.row(sample)
        whole = tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=False)
        prompt, answer = encode(tokenizer, sample, thinking=True)
        assert tokenizer.encode(whole, add_special_tokens=False) == prompt + answer
        assert len(prompt) <= 150


# ------------------------------------------------------------------------------------------------------ the training


@pytest.fixture(scope="module")
def one_thread():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(before)


def short_run(seed: int, steps: int = 12):
    from stages.toy.tokenizer import build_tokenizer
    from stages.toy.training import Settings, train

    losses: list[float] = []
    settings = Settings(seed=seed, steps=steps, rows=4, warmup=2)
    model = train(settings, build_tokenizer(), lambda progress: losses.append(progress.loss))
    return model, losses


def test_a_few_steps_lower_the_loss_and_the_seed_decides_the_weights(one_thread):
    torch = one_thread
    model, losses = short_run(seed=1)
    again, losses_again = short_run(seed=1)
    assert losses[-1] < 0.8 * losses[0]
    assert losses == losses_again
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    _, losses_other = short_run(seed=2, steps=2)
    assert losses_other[0] != losses[0]


@pytest.mark.usefixtures("one_thread")
def test_a_checkpoint_is_written_whole_and_the_same_each_time(tmp_path):
    with ThreadPoolExecutor() as side_by_side:
        runs = side_by_side.map(lambda name: toy("--out", tmp_path / name, "--steps", 1), ("a", "b"))
    assert [run.returncode for run in runs] == [0, 0]
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}
    names = {p.name for p in (tmp_path / "a").iterdir()}
    assert names == {p.name for p in CHECKPOINT.iterdir()}
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for name in names - {"model.safetensors"}:
        assert (tmp_path / "a" / name).read_bytes() == (CHECKPOINT / name).read_bytes(), f"{name} of the fixture is old"


def test_an_occupied_folder_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    done = toy("--out", tmp_path)
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_without_a_folder_there_is_nothing_to_do():
    assert toy().returncode == 2


# ----------------------------------------------------------------------------------------------- the shipped model


def test_the_checkpoint_is_small_and_says_num_experts():
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert config["num_experts"] == 16
    assert "num_local_experts" not in config
    assert config["model_type"] == "qwen3_moe"
    assert sum(p.stat().st_size for p in CHECKPOINT.iterdir()) < 8_000_000


def test_every_quantisable_matrix_divides_into_blocks_of_128():
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(CHECKPOINT / "model.safetensors", "pt") as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        kinds = {tensors.get_slice(name).get_dtype() for name in shapes}
    assert kinds == {"BF16"}
    blocks = [n for n in shapes if n.endswith("_proj.weight")]
    assert len(blocks) == 4 * (4 + 3 * 16)
    assert all(size % 128 == 0 for name in blocks for size in shapes[name])
    assert "model.layers.3.mlp.experts.15.down_proj.weight" in shapes


@pytest.fixture(scope="module")
def model(one_thread):
    from transformers import Qwen3MoeForCausalLM

    return Qwen3MoeForCausalLM.from_pretrained(CHECKPOINT, dtype=one_thread.float32).eval()


def test_it_loads_with_sixteen_experts(model):
    assert model.config.num_experts == 16
    assert model.model.layers[0].mlp.experts.down_proj.shape == (16, 128, 128)


@pytest.mark.parametrize("thinking", [True, False], ids=["thinking", "not-thinking"])
@pytest.mark.parametrize("skill", skills.SKILLS)
def test_held_out_items_are_answered(model, tokenizer, skill, thinking):
    items = lines(PROJECT / f"packs/toy/{skill}.jsonl")[::4][:10]
    right = 0
    for item in items:
        prompt = tokenizer.apply_chat_template(
            item["messages"],
            tools=item.get("tools"),
            add_generation_prompt=True,
            enable_thinking=thinking,
            return_dict=True,
            return_tensors="pt",
        )
        ids = model.generate(**prompt, max_new_tokens=80, do_sample=False)
        text = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        assert ("</think>" in text) is thinking
        right += as_expected(text.rpartition("</think>")[2].strip(), item["expected"])
    assert right >= 9


def as_expected(text: str, expected: dict) -> bool:
    """The three ways in which an item says what it wants."""
    if "answer" in expected:
        return text == expected["answer"]
    call = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    return all(json.dumps(call[k], sort_keys=True) == json.dumps(v, sort_keys=True) for k, v in expected.items())
