"""Every family, fused or expert by expert, is quantised whole: held against a float32 reference, every byte counted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from gates.errors import IntegrityError, UsageError
from registry.checkpoint import inspect
from stages.common.checkpoint import Checkpoint
from stages.quantize import write_fp8
from stages.quantize.account import KINDS, account_of
from stages.quantize.changes import predicted_bytes
from stages.quantize.fp8 import dequantize_block
from stages.quantize.plot import error_plot
from tests.support import tiny, whole
from tests.support.fp8 import WHOLE_BLOCKS
from tests.support.whole import FAMILIES, WITH_MTP

SCALES = "_scale_inv"
PROJECTIONS = {"mixtral": ("w1", "w3", "w2")}
QUANTIZED = {
    "qwen3_moe": {"experts", "attention"},
    "qwen3_next": {"experts", "shared experts", "attention", "linear attention", "MTP"},
    "qwen2_moe": {"experts", "shared experts", "attention"},
    "mixtral": {"experts", "attention"},
    "olmoe": {"experts", "attention"},
    "deepseek_v3": {"experts", "shared experts", "attention", "dense mlp", "MTP"},
    "deepseek_v2": {"experts", "shared experts", "attention", "dense mlp"},
    "glm4_moe": {"experts", "shared experts", "attention", "dense mlp", "MTP"},
    "glm4_moe_lite": {"experts", "shared experts", "attention", "dense mlp", "MTP"},
    "qwen3_5_moe_text": {"experts", "shared experts", "attention", "linear attention", "MTP"},
    "qwen3_5_moe": {"experts", "shared experts", "attention", "linear attention", "MTP"},
}


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tmp_path_factory):
    """(family, fused source, the same expert by expert, the first one in FP8, its account)"""
    family = request.param
    folder = tmp_path_factory.mktemp(family)
    mtp = family in WITH_MTP
    fused = tiny.make(folder / "fused", family, fused=True, mtp=mtp, **WHOLE_BLOCKS[family])
    single = expert_by_expert(fused, folder / "single", family)
    account = write_fp8(fused, folder / "fp8", what="quantize")
    return family, fused, single, folder / "fp8", account


def expert_by_expert(fused: Path, target: Path, family: str) -> Path:
    """The checkpoint with a matrix an expert, as transformers splits it: gate above up."""
    gate, up, down = PROJECTIONS.get(family, ("gate_proj", "up_proj", "down_proj"))
    target.mkdir()
    source, tensors = Checkpoint(fused), {}
    for name in source.tensors:
        tensor = source.tensor(name)
        path, _, last = name.rpartition(".")
        if last == "gate_up_proj":
            for expert, (first, second) in enumerate(matrix.chunk(2) for matrix in tensor):
                tensors[f"{path}.{expert}.{gate}.weight"] = first.clone()
                tensors[f"{path}.{expert}.{up}.weight"] = second.clone()
        elif last == "down_proj":
            tensors |= {f"{path}.{expert}.{down}.weight": matrix.clone() for expert, matrix in enumerate(tensor)}
        else:
            tensors[name] = tensor
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_bytes((fused / "config.json").read_bytes())
    return target


def reference(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The format's formula over whole blocks of 128 x 128, in float32."""
    rows, columns = weight.shape
    padded = torch.zeros(-(-rows // 128) * 128, -(-columns // 128) * 128)
    padded[:rows, :columns] = weight.float()
    blocks = padded.view(len(padded) // 128, 128, -1, 128)
    scales = blocks.abs().amax(dim=(1, 3)) / 448
    codes = (blocks / scales[:, None, :, None]).view_as(padded)[:rows, :columns].to(torch.float8_e4m3fn)
    return codes, scales


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def test_every_quantised_tensor_is_what_the_formula_gives_and_all_else_is_as_it_was(made):
    _, _, single, fp8, _ = made
    source, target = Checkpoint(single), Checkpoint(fp8)
    cast = {name for name, tensor in target.tensors.items() if tensor.dtype == "F8_E4M3"}
    assert target.tensors.keys() == source.tensors.keys() | {name + SCALES for name in cast}
    assert {name for name in source.tensors if ".experts." in name and name.endswith("weight")} <= cast
    for name in source.tensors:
        weight = source.tensor(name)
        if name in cast:
            codes, scales = reference(weight)
            assert same(target.tensor(name), codes), name
            assert same(target.tensor(name + SCALES), scales), name
        else:
            assert same(target.tensor(name), weight), name


def test_what_is_quantised_is_what_the_official_checkpoints_quantise(made):
    family, _, _, fp8, account = made
    assert {row.kind for row in account.rows if row.format == "fp8-block"} == QUANTIZED[family]
    left = (
        "norm", "embed_tokens", "lm_head", "visual.", "mlp.gate.", "block_sparse_moe.gate.", "shared_expert_gate",
        "in_proj_a", "in_proj_b", "conv1d", "A_log", "dt_bias", ".bias", "e_score_correction_bias", "mtp.fc", "eh_proj",
        "shared_head",
    )  # fmt: skip
    for name, tensor in Checkpoint(fp8).tensors.items():
        quantised = tensor.dtype == "F8_E4M3" or name.endswith(SCALES)
        assert quantised != any(part in name for part in left), name
    kept = json.loads((fp8 / "config.json").read_text())["quantization_config"]["modules_to_not_convert"]
    matrices = {name for name, tensor in Checkpoint(fp8).tensors.items() if len(tensor.shape) > 1}
    listed = {f"{module}.weight" for module in kept}
    assert listed <= matrices
    assert {name for name in matrices - listed if Checkpoint(fp8).tensors[name].dtype == "BF16"} == set()


def test_fused_and_expert_by_expert_give_the_same_tensors(made, tmp_path):
    _, _, single, fp8, account = made
    other = write_fp8(single, tmp_path / "fp8", what="quantize")
    one, two = Checkpoint(fp8), Checkpoint(tmp_path / "fp8")
    assert one.tensors.keys() == two.tensors.keys()
    assert all(same(one.tensor(name), two.tensor(name)) for name in one.tensors)
    assert other.after == account.after
    assert (fp8 / "config.json").read_bytes() == (tmp_path / "fp8" / "config.json").read_bytes()


def test_the_account_has_every_tensor_once_and_its_sizes_are_those_on_disk_and_those_foretold(made):
    _, fused, single, fp8, account = made
    source = Checkpoint(fused)
    assert sum(row.tensors for row in account.rows) == len(source.tensors)
    assert account.before == source.size
    assert account.after == inspect(fp8).tensor_bytes
    assert account.after == predicted_bytes(source) == predicted_bytes(Checkpoint(single))
    assert len({(row.kind, row.format) for row in account.rows}) == len(account.rows)
    assert {row.kind for row in account.rows} <= set(KINDS)
    assert sum(row.matrices for row in account.rows) == len(Checkpoint(single).tensors)


def test_the_errors_are_those_of_the_format(made):
    *_, account = made
    for row in account.rows:
        if row.format == "fp8-block":
            assert 0.024 < row.mean <= row.worst < 0.03
            assert row.worst_in in Checkpoint(made[3]).tensors
        else:
            assert row.mean is row.worst is row.worst_in is None
    layers = {layer for found in account.layers.values() for layer in found}
    assert layers >= set(range(Checkpoint(made[1]).architecture.layers))
    for found in account.layers.values():
        assert all(0.02 < mean <= worst < 0.03 for mean, worst in found.values())


@pytest.mark.parametrize("made", ["qwen3_moe", "qwen3_5_moe"], indirect=True)  # a dtype is not the family's
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_source_in_another_dtype_gives_the_same_codes_and_keeps_its_dtype_elsewhere(made, dtype, tmp_path):
    _, fused, _, fp8, _ = made
    source = Checkpoint(fused)
    folder = tmp_path / "source"
    folder.mkdir()
    tensors = {name: source.tensor(name).to(dtype) for name in source.tensors}
    exact = {name for name, tensor in tensors.items() if torch.equal(tensor.float(), source.tensor(name).float())}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_bytes((fused / "config.json").read_bytes())
    account = write_fp8(folder, tmp_path / "fp8", what="quantize")
    one, two = Checkpoint(fp8), Checkpoint(tmp_path / "fp8")
    compared = 0
    for name, tensor in one.tensors.items():
        if tensor.dtype == "F8_E4M3":
            place = name.partition(".experts.")[0] + ".experts."
            if dtype == torch.float32 or all(other in exact for other in tensors if other.startswith(place)):
                assert same(two.tensor(name), one.tensor(name))
                compared += 1
        elif not name.endswith(SCALES):
            assert two.tensor(name).dtype == dtype
    assert compared
    assert account.after == predicted_bytes(Checkpoint(folder)) == inspect(tmp_path / "fp8").tensor_bytes


def test_transformers_loads_exactly_what_was_written(made, tmp_path):
    """But for its own rounding to BF16. It knows no MTP head."""
    family, _, single, fp8, _ = made
    source, target = Checkpoint(single), Checkpoint(fp8)
    meant = {}
    for name in source.tensors:
        if name + SCALES in target.tensors:
            codes, scales = reference(source.tensor(name))
            spread = scales.repeat_interleave(128, 0)[: codes.shape[0]].repeat_interleave(128, 1)
            meant[name] = codes.float() * spread[:, : codes.shape[1]]
        else:
            meant[name] = source.tensor(name)
    (tmp_path / "meant").mkdir()
    save_file(meant, tmp_path / "meant" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((fp8 / "config.json").read_text())
    del config["quantization_config"]
    tiny.write_json(tmp_path / "meant" / "config.json", config)
    kind = AutoModelForImageTextToText if family == "qwen3_5_moe" else AutoModelForCausalLM
    expected = kind.from_pretrained(tmp_path / "meant", dtype=torch.float32).state_dict()
    model, said = kind.from_pretrained(fp8, output_loading_info=True)
    assert not said["missing_keys"]
    assert not said["mismatched_keys"]
    loaded = model.float().state_dict()
    assert loaded.keys() == expected.keys()
    for name, weight in expected.items():
        if name.endswith("kv_a_proj_with_mqa.weight"):
            continue  # it takes two scales for 192 rows as blocks of 96; DeepSeek-V3's five for 576 it refuses
        assert (loaded[name] - weight).norm() <= 0.004 * weight.norm(), name


def test_the_embedded_engine_computes_with_what_was_written(made, tmp_path):
    """In the dtype that it is asked for, whatever the checkpoint's; but partial blocks it says that it cannot read."""
    from stages.evaluate.server.model import Generator, LoadError

    fp8 = made[3]
    quantized = [each for each in Checkpoint(fp8).tensors.values() if each.dtype == "F8_E4M3"]
    if any(each.shape[0] % 128 for each in quantized):
        with pytest.raises(LoadError, match=r"kv_a_proj_with_mqa\.weight_scale_inv: .* whole blocks"):
            Generator(fp8, device="cpu", dtype="float32")
        return
    (tmp_path / "meant").mkdir()
    save_file(dequantized(fp8), tmp_path / "meant" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((fp8 / "config.json").read_text())
    del config["quantization_config"]
    tiny.write_json(tmp_path / "meant" / "config.json", config)
    ids = torch.arange(7, 31)[None]
    expected = whole.load(tmp_path / "meant")(input_ids=ids, use_cache=False).logits
    found = Generator(fp8, device="cpu", dtype="float32").model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, expected)


def dequantized(fp8: Path) -> dict[str, torch.Tensor]:
    target, found = Checkpoint(fp8), {}
    for name in target.tensors:
        if name + SCALES in target.tensors:
            found[name] = dequantize_block(target.tensor(name), target.tensor(name + SCALES))
        elif not name.endswith(SCALES):
            found[name] = target.tensor(name)
    return found


def test_the_plot_shows_every_kind_and_needs_nothing_beside_it(made):
    import xml.etree.ElementTree as ElementTree

    *_, account = made
    text = error_plot(account.layers)
    root = ElementTree.fromstring(text)  # noqa: S314 - our own
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    for kind in account.layers:
        assert f">{kind}</text>" in text
    assert "prefers-color-scheme:dark" in text
    assert "href" not in text
    assert re.search(r"\b(nan|inf)\b", text, re.IGNORECASE) is None


# ── what must not pass ──


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    source = tiny.make(folder / "source", "qwen3_moe", fused=True, num_hidden_layers=2, **WHOLE_BLOCKS["qwen3_moe"])
    write_fp8(source, folder / "fp8", what="quantize")
    return Checkpoint(source), Checkpoint(folder / "fp8")


EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"


def test_an_account_does_not_close_over_what_is_lost_or_was_never_there(qwen):
    source, fp8 = qwen
    arguments = source.architecture, source.tensors

    def but(**changes):
        return {name: tensor for name, tensor in fp8.tensors.items() if name not in changes.get("without", ())}

    account_of(*arguments, fp8.tensors, {})
    with pytest.raises(IntegrityError, match="16384 numbers of the experts of layer 1 were lost"):
        account_of(*arguments, but(without=(EXPERT,)), {})
    with pytest.raises(IntegrityError, match=f"{EXPERT} has no scales"):
        account_of(*arguments, but(without=(EXPERT + SCALES,)), {})
    with pytest.raises(IntegrityError, match=f"{EXPERT} was not quantised: BF16"):
        account_of(*arguments, fp8.tensors | {EXPERT: source.tensors["lm_head.weight"]}, {})
    more = {"model.layers.1.mlp.experts.8.up_proj.weight": fp8.tensors[EXPERT]}
    more |= {next(iter(more)) + SCALES: fp8.tensors[EXPERT + SCALES]}
    with pytest.raises(IntegrityError, match="16384 numbers of the experts of layer 1 are too many"):
        account_of(*arguments, fp8.tensors | more, {})


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"moe_intermediate_size": 64}, "gate_up_proj is 8 x 128 x 128"),
        ({"moe_intermediate_size": 192}, "gate_up_proj is 8 x 384 x 128"),
        ({"num_key_value_heads": 2}, "k_proj.weight is 64 x 128"),
        ({"hidden_size": 192}, "is "),
    ],
)
def test_fused_experts_of_partial_blocks_are_refused_with_the_numbers(tmp_path, changes, names):
    sizes = WHOLE_BLOCKS["qwen3_moe"] | changes
    source = tiny.make(tmp_path / "source", "qwen3_moe", fused=True, num_hidden_layers=1, **sizes)
    with pytest.raises(UsageError, match="divide by 128") as refused:
        write_fp8(source, tmp_path / "fp8", what="quantize")
    assert names in refused.value.what
    assert not (tmp_path / "fp8").exists()
