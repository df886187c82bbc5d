"""Block FP8: the numbers are right, nothing is skipped, and what is written loads."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gates.errors import IntegrityError, UsageError
from registry.checkpoint import inspect
from registry.recipes import Recipe
from registry.store import Store
from registry.tensors import read_header
from registry.verify import verify
from stages.common.checkpoint import Checkpoint
from stages.common.job import Job
from stages.quantize import quantize, write_fp8
from stages.quantize.fp8 import Noise, _decoded, dequantize_block, quantize_block
from tests.support.tiny import write_checkpoint, write_json

EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"

RECIPE = """\
name: small
parent: toy
steps:
  - quantize: {format: fp8-block}
"""


# ── the format ──


def e4m3_values() -> list[float]:
    """Every finite number of E4M3 (OCP 8-bit floating point, 1 sign, 4 exponent, 3 mantissa bits, bias 7), by code."""
    found = []
    for code in range(0x7F):
        exponent, mantissa = code >> 3, code & 7
        found.append(mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10))
    return found


def nearest(value: float, table: list[float]) -> float:
    """Rounded to the nearest number of the table, to the even code where two are as near."""
    code = min(range(len(table)), key=lambda code: (abs(table[code] - abs(value)), code % 2))
    return math.copysign(table[code], value)


@pytest.mark.parametrize("shape", [(128, 128), (256, 128), (130, 257), (1, 1), (127, 129)])
def test_every_number_is_what_the_formula_gives_in_float32(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape).to(torch.bfloat16)
    quantized, scales = quantize_block(weight, name="w")
    assert quantized.dtype == torch.float8_e4m3fn
    assert scales.dtype == torch.float32
    assert scales.shape == (math.ceil(shape[0] / 128), math.ceil(shape[1] / 128))
    table = e4m3_values()
    assert max(table) == 448
    for row, column in [(0, 0), (shape[0] - 1, shape[1] - 1), (shape[0] // 2, shape[1] // 3)]:
        top, left = row // 128 * 128, column // 128 * 128
        block = weight[top : top + 128, left : left + 128].float()
        scale = block.abs().max() / 448
        assert scales[row // 128, column // 128] == scale
        for (r, c), value in {
            (r, c): block[r, c] / scale for r in range(0, block.shape[0], 13) for c in range(0, block.shape[1], 17)
        }.items():
            assert quantized[top + r, left + c].item() == nearest(value.item(), table)


def test_codes_are_decoded_to_what_torch_makes_of_them():
    codes = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F], dtype=torch.uint8)
    codes = codes.view(torch.float8_e4m3fn)
    assert torch.equal(256 * _decoded(codes), codes.float())


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    st.sampled_from([1e-30, 1e-4, 1.0, 1e4]),
    st.integers(0, 99),
)
def test_the_noise_that_casting_measures_is_the_distance_to_what_was_written(rows, columns, dtype, size, seed):
    if dtype == torch.float16:
        size = min(max(size, 1e-4), 1e3)
    weight = (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)
    noise = Noise()
    codes, scales = quantize_block(weight, name="w", noise=noise)
    exact = dequantize_block(codes, scales).double() - weight.double()
    energy = weight.double().square().sum().item()  # of which float32 loses some 1e-14 where the cast loses nothing
    assert noise.lost == pytest.approx(exact.square().sum().item(), rel=1e-3, abs=1e-12 * energy)
    assert noise.power == pytest.approx(weight.double().square().sum().item(), rel=1e-3)
    halves = Noise()
    for half in weight[: rows // 256 * 128], weight[rows // 256 * 128 :]:
        if len(half):
            quantize_block(half, name="w", noise=halves)
    assert halves.relative == pytest.approx(noise.relative, rel=1e-5)


def test_the_largest_and_the_smallest_weights_have_a_finite_noise():
    for value in (torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny, 1e-45):
        noise = Noise()
        quantize_block(torch.full((3, 3), value), name="w", noise=noise)
        assert math.isfinite(noise.relative)
    noise = Noise()
    quantize_block(torch.zeros(3, 3), name="w", noise=noise)
    assert noise.relative == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gaussian_weights_lose_about_a_fortieth(dtype):
    torch.manual_seed(0)
    weight = torch.randn(512, 384).mul(0.02).to(dtype)
    error = (dequantize_block(*quantize_block(weight, name="w")) - weight.float()).norm() / weight.float().norm()
    assert 0.024 < error < 0.028


def test_a_block_of_zeros_has_the_scale_one_and_stays_zero():
    weight = torch.zeros(256, 256)
    weight[200, 200] = 3.0
    quantized, scales = quantize_block(weight, name="w")
    assert scales.tolist() == [[1.0, 1.0], [1.0, pytest.approx(3 / 448)]]
    assert torch.equal(dequantize_block(quantized, scales), weight)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
def test_no_finite_weight_whatever_gives_nan_or_an_impossible_scale(largest, other):
    """From subnormal numbers to the largest that there are."""
    weight = torch.tensor([[largest, other, -largest, 0.0]])
    quantized, scales = quantize_block(weight, name="w")
    assert scales.isfinite().all()
    assert (scales > 0).all()
    back = dequantize_block(quantized, scales)
    assert back.isfinite().all()
    amax = max(abs(largest), abs(other))
    assert (back - weight).abs().max() <= max(amax / 16, 2.0**-126)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [(0, 0), (299, 99), (129, 64)])
def test_a_weight_that_is_no_number_is_refused_by_name(bad, place):
    weight = torch.zeros(300, 100, dtype=torch.bfloat16)
    weight[place] = bad
    with pytest.raises(IntegrityError, match="NaN or infinity") as refused:
        quantize_block(weight, name="model.x.weight")
    assert "model.x.weight" in str(refused.value)


# ── checkpoints ──


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A BF16 checkpoint and its quantised form."""
    folder = tmp_path_factory.mktemp("pair")
    plain = write_checkpoint(folder / "plain", hidden=256, intermediate=128, experts=8, shards=3)
    write_fp8(plain, folder / "fp8", what="quantize")
    return plain, folder / "fp8"


def test_every_expert_and_projection_is_quantised_and_all_else_is_the_same_bit_by_bit(pair):
    plain, fp8 = Checkpoint(pair[0]), Checkpoint(pair[1])
    quantised = {name for name, tensor in fp8.tensors.items() if tensor.dtype == "F8_E4M3"}
    experts = {name for name in plain.tensors if ".experts." in name}
    assert len(experts) == 2 * 8 * 3
    assert quantised == experts | {name for name in plain.tensors if "_proj" in name}
    assert fp8.tensors.keys() == plain.tensors.keys() | {name + "_scale_inv" for name in quantised}
    for name in plain.tensors.keys() - quantised:
        assert torch.equal(fp8.tensor(name).view(torch.int16), plain.tensor(name).view(torch.int16))
    for name in quantised:
        back = dequantize_block(fp8.tensor(name), fp8.tensor(name + "_scale_inv"))
        weight = plain.tensor(name).float()
        assert (back - weight).norm() / weight.norm() < 0.03
        assert fp8.weight_map[name] == fp8.weight_map[name + "_scale_inv"] == plain.weight_map[name]


def test_what_is_written_is_whole_and_half_as_large(pair):
    before, after = inspect(pair[0]), inspect(pair[1])
    assert after.quantization == "fp8-block"
    assert (after.layers, after.experts, after.top_k) == (before.layers, before.experts, before.top_k)
    assert after.tensor_bytes < 0.6 * before.tensor_bytes


def test_config_json_gains_the_quantisation_and_nothing_else(pair):
    before, after = (json.loads((folder / "config.json").read_text()) for folder in pair)
    stated = after.pop("quantization_config")
    assert after == before
    assert stated == {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": [
            "lm_head",
            "model.embed_tokens",
            "model.layers.0.mlp.gate",
            "model.layers.1.mlp.gate",
        ],
    }
    assert (pair[0] / "tokenizer.json").read_bytes() == (pair[1] / "tokenizer.json").read_bytes()


def test_it_loads_in_transformers_and_answers_nearly_as_before(pair):
    from transformers import Qwen3MoeForCausalLM

    plain = Qwen3MoeForCausalLM.from_pretrained(pair[0], dtype=torch.float32).eval()
    fp8 = Qwen3MoeForCausalLM.from_pretrained(pair[1]).float().eval()
    checkpoint = Checkpoint(pair[1])
    expected = torch.stack(
        [
            dequantize_block(checkpoint.tensor(name), checkpoint.tensor(name + "_scale_inv"))
            for name in (f"model.layers.1.mlp.experts.{expert}.down_proj.weight" for expert in range(8))
        ]
    )
    loaded = fp8.model.layers[1].mlp.experts.down_proj
    assert (loaded - expected).norm() / expected.norm() < 0.005  # transformers rounds to BF16
    ids = torch.arange(34).view(2, 17)
    with torch.no_grad():
        one, other = plain(ids).logits, fp8(ids).logits
    assert (one - other).norm() / one.norm() < 0.15
    assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99


@pytest.mark.parametrize(
    ("hidden", "intermediate", "names"),
    [(256, 64, "experts.0.gate_proj.weight is 64 x 256"), (192, 128, "_proj.weight is ")],
)
def test_dimensions_that_do_not_divide_are_refused_with_the_numbers(tmp_path, hidden, intermediate, names):
    store = Store.init(tmp_path / "models")
    store.add("toy", write_checkpoint(tmp_path / "plain", hidden=hidden, intermediate=intermediate))
    before = sorted(store.layout.root.rglob("*"))
    with pytest.raises(UsageError, match="divide by 128") as refused:
        quantize(job(store))
    assert names in refused.value.what
    assert sorted(store.layout.root.rglob("*")) == before


def test_nan_in_an_expert_is_refused_by_name(tmp_path):
    plain = write_checkpoint(tmp_path / "plain", hidden=256, intermediate=128)
    tensor = Checkpoint(plain).tensors[EXPERT]
    with tensor.file.open("r+b") as file:
        file.seek(tensor.end - 2)
        file.write(b"\xc0\x7f")  # NaN in BF16
    with pytest.raises(IntegrityError, match="NaN or infinity") as refused:
        write_fp8(plain, tmp_path / "fp8", what="quantize")
    assert EXPERT in str(refused.value)
    assert not (tmp_path / "fp8" / "config.json").exists()


def test_two_runs_write_the_same_bytes(pair, tmp_path):
    write_fp8(pair[0], tmp_path / "again", what="quantize")
    assert {path.name: path.read_bytes() for path in pair[1].iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()
    }


# ── the stage ──


@pytest.fixture
def store(tmp_path):
    store = Store.init(tmp_path / "models")
    store.add("toy", write_checkpoint(tmp_path / "source", hidden=256, intermediate=128, shards=2))
    return store


def job(store: Store, source: str = "toy", makes: str = "small", *, replace: bool = False, **asked) -> Job:
    if isinstance(asked.get("shard_size"), int):
        asked["shard_size"] = f"{asked['shard_size']} B"
    recipe = Recipe(name=makes, parent=source, steps=[{"quantize": asked}])
    candidate = store.candidate(source)
    return Job(store, Path(), recipe, recipe.steps[0].settings, candidate, makes, replace, "r.yaml, steps[0].quantize")


def test_the_stage_makes_a_candidate_that_knows_its_parent(store, capsys):
    quantize(job(store))
    made = store.candidate("small")
    assert made.manifest.inputs.op == "quantize"
    assert made.manifest.inputs.parent == store.candidate("toy").digest
    assert made.manifest.inputs.settings == {"format": "fp8-block", "shard_size": 4 << 30}
    assert made.manifest.shape.quantization == "fp8-block"
    assert verify(store, "small", full=True) == []
    assert list(store.layout.staging.iterdir()) == []
    *lines, line = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:7] == ["experts", "24", "1.5", "MiB", "768.2", "KiB", "fp8-block"]
    kinds = [line.split()[0] for line in lines[1:-1]]
    assert kinds == ["experts", "attention", "router", "norms", "embeddings", "head"]
    assert line.startswith("small: fp8-block, 1.4 MiB (was 2.5 MiB)")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(store):
    with pytest.raises(UsageError, match="no CUDA device") as caught:
        quantize(dataclasses.replace(job(store), device="cuda"))
    assert caught.value.where == "--device"


def test_a_half_made_step_is_finished(store):
    step = job(store)
    quantize(step)
    digest = store.candidate("small").digest
    inputs = store.candidate("small").manifest.inputs
    other = Store.init(store.layout.root.parent / "other")
    other.add("toy", store.layout.root.parent / "source")
    with other.step(inputs.identity()) as folder:
        model = folder / "model"
        model.mkdir()
        (model / "model-00001-of-00002.safetensors").write_bytes(b"half")
        (model / "config.json").write_text("{")
        (model / ".tmp-0123456789abcdef").write_bytes(b"half")
    quantize(job(other))
    assert other.candidate("small").digest == digest
    assert verify(other, "small", full=True) == []


def test_shards_that_are_finished_stay_and_what_they_cost_is_remembered(store, monkeypatch):
    """Stopped at any shard, the work goes on with the next, and ends in the same bytes and the same account."""
    from stages.quantize.journal import Journal

    step = job(store, makes="whole", shard_size=300_000)
    quantize(step)
    whole = store.candidate("whole")
    shards = sorted(file.name for file in whole.folder.glob("*.safetensors"))
    assert len(shards) > 3
    account = (whole.folder.parent / "attachments" / "account.json").read_bytes()
    for stopped in range(len(shards)):
        other = Store.init(store.layout.root.parent / f"other-{stopped}")
        other.add("toy", store.layout.root.parent / "source")
        seal, sealed = Journal.seal, []

        def stops(self, shard, names, *, seal=seal, sealed=sealed, stopped=stopped):
            if len(sealed) == stopped:
                raise KeyboardInterrupt
            seal(self, shard, names)
            sealed.append(shard)

        again = job(other, makes="whole", shard_size=300_000)
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "seal", stops)
            with pytest.raises(KeyboardInterrupt):
                quantize(again)
        (work,) = [path for path in other.layout.staging.iterdir() if (path / "model").is_dir()]
        left = {path.name: path.stat().st_ino for path in (work / "model").glob("*.safetensors")}
        assert sorted(left) == sorted(sealed)
        quantize(again)
        made = other.candidate("whole")
        assert made.digest == whole.digest
        assert (made.folder.parent / "attachments" / "account.json").read_bytes() == account
        for name, inode in left.items():
            assert (made.folder / name).stat().st_ino == inode


def test_a_finished_shard_without_a_note_is_made_again(store):
    quantize(job(store))
    whole = store.candidate("small")
    other = Store.init(store.layout.root.parent / "other")
    other.add("toy", store.layout.root.parent / "source")
    with other.step(whole.manifest.inputs.identity()) as folder:
        (folder / "model").mkdir()
        shard = folder / "model" / "model.safetensors"
        data = bytearray((whole.folder / "model.safetensors").read_bytes())
        data[-1] ^= 1  # complete to look at
        shard.write_bytes(data)
    quantize(job(other))
    assert other.candidate("small").digest == whole.digest


def test_shards_have_the_size_that_the_recipe_asks_for(store):
    quantize(job(store, shard_size="300 KB"))
    made = store.candidate("small")
    assert made.manifest.inputs.settings["shard_size"] == 300_000
    shards = sorted(made.folder.glob("*.safetensors"))
    assert len(shards) > 3
    assert all(sum(tensor.size for tensor in read_header(shard).values()) <= 300_000 for shard in shards)
    assert verify(store, "small", full=True) == []


def test_the_account_and_the_plot_are_beside_the_model(store):
    quantize(job(store))
    made = store.candidate("small")
    attachments = made.folder.parent / "attachments"
    account = json.loads((attachments / "account.json").read_bytes())
    source = Checkpoint(store.candidate("toy").folder)
    assert sum(row["tensors"] for row in account["rows"]) == len(source.tensors)
    assert sum(row["before"] for row in account["rows"]) == source.size
    assert sum(row["after"] for row in account["rows"]) == made.manifest.shape.tensor_bytes
    assert [each["layer"] for each in account["layers"]["experts"]] == [0, 1]
    assert (attachments / "errors.svg").read_text().startswith("<svg")


def test_what_would_not_fit_the_card_is_refused_before_it_is_written(store, capsys):
    before = sorted(store.layout.root.rglob("*"))
    with pytest.raises(UsageError, match=r"would have 1\.4 MiB of weights, and the card 1\.0 MiB") as refused:
        quantize(job(store, card="1 MiB"))
    assert refused.value.where == "r.yaml, steps[0].quantize.card"
    assert sorted(store.layout.root.rglob("*")) == before
    quantize(job(store, card="2 MiB"))
    assert "of the card" in capsys.readouterr().out


def test_a_quantised_source_is_refused_and_nothing_is_written(store):
    quantize(job(store))
    before = sorted(store.layout.root.rglob("*"))
    with pytest.raises(UsageError, match=r"small is quantised already \(fp8-block\)") as refused:
        quantize(job(store, "small", "smaller"))
    assert refused.value.where == "r.yaml, steps[0].quantize"
    assert sorted(store.layout.root.rglob("*")) == before


def test_a_name_that_is_taken_is_refused_before_work_begins(store, tmp_path):
    store.add("small", write_checkpoint(tmp_path / "else", seed=9))
    with pytest.raises(UsageError, match="made from something else"):
        quantize(job(store))
    quantize(job(store, replace=True))
    assert store.candidate("small").manifest.shape.quantization == "fp8-block"


WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "numpy"):
            raise ImportError("no torch here: " + name)
sys.meta_path.insert(0, Refuse())
import runpy
sys.argv = ["quantize", *sys.argv[1:]]
runpy.run_module("stages.quantize", run_name="__main__")
"""


def test_what_is_made_already_is_found_and_what_cannot_be_is_refused_without_torch(store, tmp_path):
    quantize(job(store))
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE)
    command = [sys.executable, "-c", WITHOUT_TORCH, "--root", str(store.layout.root), "--recipe", str(recipe)]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("small: made already")
    refused = subprocess.run([*command, "--candidate", "small"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "quantised already" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_program_quantises_and_says_so_in_a_line(store, tmp_path):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE)
    command = [sys.executable, "-m", "stages.quantize", "--root", str(store.layout.root), "--recipe", str(recipe)]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[-1].startswith("small: fp8-block, ")
    progress = [json.loads(line) for line in made.stderr.splitlines()]
    assert {"quantize small", "commit small"} == {line["what"] for line in progress}
    assert verify(store, "small", full=True) == []


def test_one_damage_at_a_time_to_what_the_stage_makes_is_found_by_name(store, tmp_path):
    """What a careless tool could have written: one expert's scale lost, one expert left in BF16."""
    quantize(job(store))
    made = Checkpoint(store.candidate("small").folder)
    plain = Checkpoint(store.candidate("toy").folder)
    from stages.common.rewriting import Change, Product, dropped, kept, rewrite

    lost = [dropped(n) if n == EXPERT + "_scale_inv" else kept(made, n) for n in made.tensors]
    rewrite(made, tmp_path / "lost", lost, config={})
    with pytest.raises(IntegrityError, match="its scales are missing") as refused:
        inspect(tmp_path / "lost")
    assert EXPERT in refused.value.what

    product = Product(EXPERT, "BF16", plain.tensors[EXPERT].shape)
    left = [
        Change(n, (product,), lambda _: [plain.tensor(EXPERT)]) if n == EXPERT else kept(made, n) for n in made.tensors
    ]
    rewrite(made, tmp_path / "left", left, config={})
    with pytest.raises(IntegrityError, match="was not quantised") as refused:
        inspect(tmp_path / "left")
    assert EXPERT in refused.value.what
    config = tmp_path / "left" / "config.json"
    config.unlink()  # its rights are those of the source, a blob: read-only
    write_json(config, made.config | {"quantization_config": None})
    with pytest.raises(IntegrityError, match="no quantization_config"):
        inspect(tmp_path / "left")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (EXPERT + "_scale_inv", b"\x00\x00\xc0\x7f", "finite numbers above 0"),
        (EXPERT + "_scale_inv", b"\x00\x00\x80\x7f", "finite numbers above 0"),
        (EXPERT + "_scale_inv", b"\x00\x00\x00\x00", "finite numbers above 0"),
        (EXPERT, b"\x7f", "finite numbers"),
    ],
)
def test_a_number_that_cannot_be_is_found_by_name(store, name, value, says):
    quantize(job(store))
    made = store.candidate("small")
    tensor = Checkpoint(made.folder).tensors[name]
    tensor.file.chmod(0o644)
    with tensor.file.open("r+b") as file:
        file.seek(tensor.begin)
        file.write(value)
    problems = [str(problem) for problem in verify(store, "small", full=True)]
    assert any(name in problem and says in problem for problem in problems), problems


def test_a_truncated_shard_is_found_by_name(store):
    quantize(job(store))
    made = store.candidate("small")
    last = list(Checkpoint(made.folder).tensors)[-1]
    shard = (made.folder / "model.safetensors").resolve()
    shard.chmod(0o644)
    os.truncate(shard, shard.stat().st_size - 1)
    problems = [str(problem) for problem in verify(store, "small", full=False)]
    assert any(last in problem and "truncated" in problem for problem in problems), problems


def test_a_scale_thirty_times_too_large_changes_the_answers(pair, tmp_path):
    from transformers import Qwen3MoeForCausalLM

    made = Checkpoint(pair[1])
    scales = [name for name in made.tensors if name.endswith("o_proj.weight_scale_inv")]
    from stages.common.rewriting import Change, Product, kept, rewrite

    changes = [
        Change(n, (Product(n, "F32", made.tensors[n].shape),), lambda scale: [scale * 30])
        if n in scales
        else kept(made, n)
        for n in made.tensors
    ]
    rewrite(made, tmp_path / "thirty", changes, config={})
    ids = torch.arange(34).view(2, 17)
    answers = []
    for folder in (pair[0], pair[1], tmp_path / "thirty"):
        with torch.no_grad():
            answers.append(Qwen3MoeForCausalLM.from_pretrained(folder).float().eval()(ids).logits)
    plain, fp8, thirty = answers
    assert (thirty - plain).norm() > 5 * (fp8 - plain).norm()
