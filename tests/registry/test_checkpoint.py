"""A checkpoint is whole or it is refused: files, index, config.json and every tensor are held against each other."""

from __future__ import annotations

import json
import math
import os
import pickle
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gates.errors import IntegrityError, UsageError
from registry.checkpoint import INDEX, examine, inspect
from registry.tensors import DTYPES
from tests.support import tiny
from tests.support.fp8 import fp8_checkpoint, write_fp8_checkpoint
from tests.support.tiny import Tensor, write_checkpoint, write_json, write_weights

CONFIG = tiny.configuration(layers=2, experts=4, hidden=16, intermediate=16, top_k=2)
EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"
ROUTER = "model.layers.1.mlp.gate.weight"
LINEAR = "model.layers.0.self_attn.o_proj.weight"


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    return write_checkpoint(tmp_path / "model", shards=3)


@pytest.fixture
def fp8(tmp_path):
    return write_fp8_checkpoint(tmp_path / "model", hidden=160, intermediate=130)


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {key: value for key, value in (config | changes).items() if value is not ...})


def change_index(folder: Path, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    write_json(folder / INDEX, index)


def said(folder: Path) -> str:
    """What `inspect` says when it refuses the checkpoint."""
    with pytest.raises(IntegrityError) as refused:
        inspect(folder)
    return str(refused.value)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [False, True])
def test_a_whole_checkpoint_is_described(tmp_path, shards, tied):
    shape = inspect(write_checkpoint(tmp_path / "model", shards=shards, tied=tied))
    size = sum(len(tensor.data) for tensor in tiny.tensors(CONFIG | {"tie_word_embeddings": tied}).values())
    assert shape.model_dump() == {
        "family": "qwen3_moe",
        "layers": 2,
        "experts": 4,
        "top_k": 2,
        "quantization": None,
        "tensor_bytes": size,
    }


def test_a_whole_fp8_checkpoint_is_described(fp8):
    assert inspect(fp8).quantization == "fp8-block"


def test_a_checkpoint_of_links_is_as_good_as_one_of_files(tmp_path, sharded):
    links = tmp_path / "links"
    links.mkdir()
    for file in sharded.iterdir():
        (links / file.name).symlink_to(os.path.relpath(file, links))
    assert inspect(links) == inspect(sharded)


def test_dense_layers_are_expected_to_have_no_experts(tmp_path):
    weights = tiny.tensors(CONFIG)
    dense = {name: tensor for name, tensor in weights.items() if ".0.mlp." not in name} | {
        f"model.layers.0.mlp.{name}_proj.weight": Tensor("BF16", (16, 16), bytes(512))
        for name in ("gate", "up", "down")
    }
    tmp_path.joinpath("config.json").write_text(json.dumps(CONFIG | {"mlp_only_layers": [0]}))
    write_weights(tmp_path, dense)
    assert inspect(tmp_path).layers == 2
    # the same tensors, stated in the other way: every second layer, counted from 1, has experts
    tmp_path.joinpath("config.json").write_text(json.dumps(CONFIG | {"decoder_sparse_step": 2}))
    assert inspect(tmp_path).layers == 2
    write_weights(tmp_path, weights)
    assert "layer 0 is stated to have no experts, but there are tensors of 4" in said(tmp_path)
    del dense["model.layers.0.mlp.up_proj.weight"]
    write_weights(tmp_path, dense)
    assert "no tensor model.layers.0.mlp.up_proj.weight" in said(tmp_path)


# ── files ──


def torch_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", "x")


class Runs:
    """Its pickle runs code when it is loaded."""

    def __reduce__(self):
        return os.getcwd, ()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_header_as_long_as_the_mark_of_a_pickle_is_none(folder, protocol):
    """The length is the first thing in a safetensors file: 1,152 is 80 04, which marks protocol 4."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    wanted = 0x80 + 256 * (protocol + 256 * (1 + length // 65536))
    header = content[8 : 8 + length] + b" " * (wanted - length)
    path.write_bytes(wanted.to_bytes(8, "little") + header + content[8 + length :])
    assert path.read_bytes()[:2] == bytes((0x80, protocol))
    inspect(folder)


def test_a_pickle_that_begins_as_safetensors_do_is_refused(folder):
    """80 04 is the length's beginning, and what follows a number of eight bytes that hides the brace."""
    call = pickle.dumps(Runs(), protocol=0)
    (folder / "extra.bin").write_bytes(b"\x80\x04G\x00\x00\x00\x00\x00{\x00\x000" + call)
    assert "extra.bin: it is a pickle" in said(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "notes.txt", "tokenizer.model"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_whatever_it_is_called(folder, name, protocol):
    (folder / name).write_bytes(pickle.dumps(Runs(), protocol=protocol))
    assert f"{name}: it is a pickle" in said(folder)


@pytest.mark.parametrize("name", ["model.pt", "vocab.json", "chat_template.jinja"])
def test_a_zip_archive_is_refused_whatever_it_is_called(folder, name):
    torch_archive(folder / name)
    assert f"{name}: it is a zip archive" in said(folder)


def test_a_zip_archive_called_safetensors_is_refused(folder):
    torch_archive(folder / "model.safetensors")
    assert "it is a zip archive" in said(folder)


@pytest.mark.parametrize("text", ["", ".", "c\nd\n.\n", "cat\ndog\nemu\n", "#version: 0.2\nĠ t\n", "I1\n.", "N."])
def test_ordinary_text_is_no_pickle(folder, text):
    (folder / "merges.txt").write_text(text, encoding="utf-8")
    inspect(folder)


def test_pipes_and_links_that_lead_nowhere_are_refused_without_being_opened(folder):
    os.mkfifo(folder / "pipe")
    (folder / "gone").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    what = said(folder)
    assert "pipe: it is not a regular file" in what
    assert "gone: it is a file that cannot be read" in what
    assert "loop: it is a file that cannot be read" in what


def test_a_folder_without_weights_or_config_is_refused(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    assert "there are no weights" in said(folder)
    (folder / "config.json").unlink()
    assert "config.json cannot be read" in said(folder)
    assert "config.json cannot be read" in said(tmp_path / "none")


def test_an_extra_safetensors_file_is_refused(folder):
    (folder / "extra.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert "is in extra.safetensors too" in said(folder) or "is in model.safetensors too" in said(folder)
    tiny.write_safetensors(folder / "extra.safetensors", {"x": Tensor("BF16", (1,), b"12")})
    assert "extra.safetensors: a safetensors file that no index names" in said(folder)


def test_an_extra_safetensors_file_beside_an_index_is_refused(sharded):
    tiny.write_safetensors(sharded / "extra.safetensors", {"x": Tensor("BF16", (1,), b"12")})
    assert f"extra.safetensors: {INDEX} does not name this file" in said(sharded)


def test_weights_in_a_folder_below_are_refused_though_an_index_names_them(sharded):
    (sharded / "deep").mkdir()
    (sharded / "model-00002-of-00003.safetensors").rename(sharded / "deep" / "x.safetensors")
    text = (sharded / INDEX).read_text().replace("model-00002-of-00003", "deep/x")
    (sharded / INDEX).write_text(text)
    assert "deep/x.safetensors: weights in a folder of their own" in said(sharded)


# ── index and shards ──


def test_an_index_that_names_a_tensor_elsewhere_is_refused(sharded):
    change_index(sharded, lambda names: names.update({EXPERT: names[ROUTER], ROUTER: names[EXPERT]}))
    names = json.loads((sharded / INDEX).read_text())["weight_map"]
    assert names[EXPERT] != names[ROUTER]
    assert f"tensor {EXPERT} is not in the file that {INDEX} names" in said(sharded)


def test_an_index_that_names_a_tensor_that_is_not_there_is_refused(sharded):
    change_index(sharded, lambda names: names.update(x="model-00001-of-00003.safetensors"))
    assert "tensor x is not in the file" in said(sharded)


def test_an_index_that_forgets_a_tensor_is_refused(sharded):
    change_index(sharded, lambda names: names.pop(EXPERT))
    assert f"tensor {EXPERT} is not in {INDEX}" in said(sharded)


def test_a_missing_shard_is_refused(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    assert f"model-00002-of-00003.safetensors: {INDEX} names this file, but it is not there" in said(sharded)


def test_an_index_cannot_lead_out_of_the_folder(sharded):
    change_index(sharded, lambda names: names.update({EXPERT: "../elsewhere.safetensors"}))
    assert "../elsewhere.safetensors" in said(sharded)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "\xff"])
def test_an_index_that_is_none_is_refused(sharded, text):
    (sharded / INDEX).write_text(text, encoding="latin-1")
    assert INDEX in said(sharded)


def test_a_truncated_shard_is_refused_and_named(sharded):
    path = sharded / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    what = said(sharded)
    assert "model-00002-of-00003.safetensors: tensor " in what
    assert "truncated" in what


# ── config.json ──


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "not a JSON"),
        (b"{", "not a JSON"),
        (b"[]", "no object"),
        (b"\xff\xfe", "not a JSON"),
        (b'{"model_type": "qwen3_moe", "model_type": "qwen3_moe"}', "twice"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nested"),
        (b'{"a":' * 100_000, "not a JSON"),
        (b" " * 16_000_001, "larger"),
    ],
)
def test_a_config_that_is_not_json_is_refused(folder, text, says):
    (folder / "config.json").write_bytes(text)
    assert says in said(folder)


@pytest.mark.parametrize("model_type", ["llama", None, 3, [], "qwen3_moe "])
def test_an_unknown_family_is_refused_with_those_that_are_known(folder, model_type):
    change_config(folder, model_type=model_type)
    with pytest.raises(UsageError, match="not a family") as refused:
        inspect(folder)
    assert "qwen3_moe" in str(refused.value.remedy)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_experts": 3}, "layer 0 has an expert 3"),
        ({"num_experts": 5}, "layer 0 has no expert 4"),
        ({"num_experts": 10**9}, "layer 1 has no expert 4, 5, 6, 7, 8, 9, 10, 11, …"),
        ({"num_experts": ...}, "states no num_experts"),
        ({"num_experts": "4"}, "states no num_experts"),
        ({"num_experts": 0}, "states no num_experts"),
        ({"num_experts": True}, "states no num_experts"),
        ({"num_local_experts": 5}, "num_experts is 4 but num_local_experts is 5"),
        ({"num_local_experts": None}, "num_local_experts is None"),
        ({"num_experts": "4", "num_local_experts": 4}, "num_experts is 4 but"),
        ({"num_experts_per_tok": 5}, "routed to 5 of only 4"),
        ({"num_experts_per_tok": -1}, "states no num_experts_per_tok"),
        ({"num_hidden_layers": 1}, "there are tensors of layer 1"),
        ({"num_hidden_layers": 3}, "there are no tensors of layer 2"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000"),
        ({"num_hidden_layers": ...}, "states no num_hidden_layers"),
        ({"mlp_only_layers": 3}, "mlp_only_layers is not a list"),
        ({"mlp_only_layers": [1]}, "layer 1 is stated to have no experts"),
        ({"decoder_sparse_step": 0}, "states no decoder_sparse_step"),
    ],
)
def test_a_config_that_states_something_else_than_the_tensors_is_refused(folder, changes, says):
    change_config(folder, **changes)
    assert says in said(folder)


def test_the_name_that_transformers_gives_the_count_is_read_too(folder):
    shape = inspect(folder)
    change_config(folder, num_local_experts=4)
    assert inspect(folder) == shape
    change_config(folder, num_experts=...)
    assert inspect(folder) == shape


# ── tensors ──


def without(folder: Path, name: str, weights: dict[str, Tensor]) -> None:
    write_weights(folder, {other: tensor for other, tensor in weights.items() if other != name})


@pytest.mark.parametrize("name", sorted(tiny.tensors(CONFIG)))
def test_not_one_tensor_can_be_missing(folder, name):
    without(folder, name, tiny.tensors(CONFIG))
    layer = name.split(".")[2] if ".layers." in name else None
    what = said(folder)
    assert name in what or f"layer {layer}" in what


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.experts.4.up_proj.weight",
        "model.layers.0.mlp.experts.03.up_proj.weight",
        "model.layers.0.mlp.experts.٣.up_proj.weight",
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.2.input_layernorm.weight",
        "mtp.layers.0.input_layernorm.weight",
        EXPERT + "_scale_inv",
        "x",
    ],
)
def test_not_one_tensor_can_be_too_much(folder, name):
    write_weights(folder, tiny.tensors(CONFIG) | {name: Tensor("BF16", (16,), bytes(32))})
    what = said(folder)
    assert name in what or "expert 4" in what or "layer 2" in what


@pytest.mark.parametrize("rows", [3, 5])
def test_a_router_with_another_number_of_rows_is_refused(folder, rows):
    write_weights(folder, tiny.tensors(CONFIG) | {ROUTER: Tensor("BF16", (rows, 16), bytes(rows * 32))})
    assert f"tensor {ROUTER}: its shape is [{rows}, 16] (expected: [4, 16], by config.json)" in said(folder)


@pytest.mark.parametrize("shape", [(256,), (8, 32), (16, 16, 1)])
def test_a_tensor_of_another_shape_than_the_config_gives_it_is_refused(folder, shape):
    weights = tiny.tensors(CONFIG)
    weights[EXPERT] = replace(weights[EXPERT], shape=shape)
    write_weights(folder, weights)
    assert f"tensor {EXPERT}: its shape is {list(shape)} (expected: [16, 16], by config.json)" in said(folder)


def test_a_tensor_of_another_dtype_than_its_peers_is_refused(folder):
    weights = tiny.tensors(CONFIG)
    weights[EXPERT] = replace(weights[EXPERT], dtype="F16")
    write_weights(folder, weights)
    assert f"tensor {EXPERT}: F16, unlike its peers in other layers and experts (expected: BF16)" in said(folder)


def test_weights_that_are_no_floats_are_refused(folder):
    weights = {name: replace(tensor, dtype="I16") for name, tensor in tiny.tensors(CONFIG).items()}
    write_weights(folder, weights)
    assert f"tensor {EXPERT}: I16 is no dtype of weights" in "\n".join(map(str, examine(folder)[1]))


def test_every_problem_is_found_at_once(folder):
    weights = tiny.tensors(CONFIG)
    del weights[EXPERT], weights["model.norm.weight"]
    weights["x"] = Tensor("BF16", (1,), b"12")
    write_weights(folder, weights)
    change_config(folder, num_experts_per_tok=9)
    _, problems = examine(folder)
    assert len(problems) == 4


# ── block FP8 ──


@pytest.fixture
def parts():
    return fp8_checkpoint(hidden=160, intermediate=130)


def refused_fp8(folder: Path, config: dict, weights: dict[str, Tensor]) -> str:
    write_json(folder / "config.json", config)
    write_weights(folder, weights)
    return said(folder)


@pytest.mark.parametrize("name", [EXPERT, LINEAR])
def test_a_missing_scale_is_found(tmp_path, parts, name):
    config, weights = parts
    del weights[name + "_scale_inv"]
    assert f"tensor {name}: its scales are missing" in refused_fp8(tmp_path, config, weights)


@pytest.mark.parametrize("name", [EXPERT, LINEAR])
def test_a_weight_that_was_left_unquantised_is_found(tmp_path, parts, name):
    config, weights = parts
    shape = weights[name].shape
    weights[name] = Tensor("BF16", shape, bytes(2 * shape[0] * shape[1]))
    assert f"tensor {name}: BF16 {list(shape)} was not quantised" in refused_fp8(tmp_path, config, weights)
    del weights[name + "_scale_inv"]
    assert f"tensor {name}: BF16 {list(shape)} was not quantised" in refused_fp8(tmp_path, config, weights)


@pytest.mark.parametrize(("dtype", "shape"), [("F32", (2, 1)), ("F32", (1, 2)), ("F32", (4,)), ("F64", (2, 2))])
def test_scales_of_another_form_are_found(tmp_path, parts, dtype, shape):
    config, weights = parts
    weights[EXPERT + "_scale_inv"] = Tensor(dtype, shape, bytes(DTYPES[dtype] * math.prod(shape)))
    assert weights[EXPERT].shape == (130, 160)
    assert f"{EXPERT}_scale_inv: {dtype} {list(shape)} (expected: F32 or BF16 or F16 [2, 2])" in refused_fp8(
        tmp_path, config, weights
    )


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_scales_in_16_bits_are_taken_as_qwen_publishes_them(tmp_path, parts, dtype):
    config, weights = parts
    for name in [name for name in weights if name.endswith("_scale_inv")]:
        shape = weights[name].shape
        weights[name] = Tensor(dtype, shape, b"\x01\x3c" * math.prod(shape))
    write_json(tmp_path / "config.json", config)
    write_weights(tmp_path, weights, shards=2)
    assert inspect(tmp_path).quantization == "fp8-block"


def test_scales_of_nothing_are_found(tmp_path, parts):
    config, weights = parts
    weights["lm_head.weight_scale_inv"] = Tensor("F32", (3, 2), bytes(24))
    assert "tensor lm_head.weight_scale_inv: scales of nothing" in refused_fp8(tmp_path, config, weights)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.0.mlp.gate.weight", "model.norm.weight"])
def test_fp8_where_it_does_not_belong_is_found(tmp_path, parts, name):
    config, weights = parts
    weights[name] = Tensor("F8_E4M3", weights[name].shape, weights[name].data[::2])
    assert f"tensor {name}: F8_E4M3, but this tensor is never quantised" in refused_fp8(tmp_path, config, weights)


def test_fp8_without_a_word_in_the_config_is_found(tmp_path, parts):
    config, weights = parts
    del config["quantization_config"]
    assert "but config.json has no quantization_config" in refused_fp8(tmp_path, config, weights)


def test_a_config_that_calls_plain_weights_quantised_is_found(tmp_path, parts):
    config, _ = parts
    assert "was not quantised" in refused_fp8(tmp_path, config, tiny.tensors(config))


def test_modules_to_not_convert_must_be_true(tmp_path, parts):
    config, weights = parts
    stated = config["quantization_config"]["modules_to_not_convert"]
    stated.remove("model.layers.1.mlp.gate")
    stated.append("model.layers.0.mlp.experts.0.up_proj")
    what = refused_fp8(tmp_path, config, weights)
    assert "modules_to_not_convert does not name model.layers.1.mlp.gate" in what
    assert "modules_to_not_convert names model.layers.0.mlp.experts.0.up_proj, which is quantised" in what


@pytest.mark.parametrize(
    "stated",
    [
        "fp8",
        {},
        {"quant_method": "gptq"},
        {"quant_method": "fp8"},
        {"quant_method": "fp8", "weight_block_size": [128]},
        {"quant_method": "fp8", "weight_block_size": [0, 128]},
        {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "static"},
        {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": 3},
    ],
)
def test_another_quantisation_is_refused(folder, stated):
    change_config(folder, quantization_config=stated)
    with pytest.raises(UsageError, match="quantization_config") as refused:
        inspect(folder)
    assert "block FP8" in str(refused.value.remedy)


# ── laws ──


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.data())
def test_no_damage_to_a_file_crashes_the_check(tmp_path_factory, data):
    """Cut or overwritten anywhere, a file is found damaged, or its numbers alone have changed."""
    folder = write_fp8_checkpoint(tmp_path_factory.mktemp("damaged") / "model", shards=2)
    file = folder / data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir())))
    content = bytearray(file.read_bytes())
    begin = data.draw(st.integers(0, min(len(content) - 1, 4000)))
    new = data.draw(st.binary(max_size=8))
    content[begin : begin + len(new)] = new
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    file.write_bytes(content)
    with suppress(UsageError, IntegrityError):
        inspect(folder)
