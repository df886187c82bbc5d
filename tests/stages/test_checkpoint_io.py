"""Reading a checkpoint tensor by tensor, and writing another in which every tensor and byte is accounted for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from gates.errors import IntegrityError
from registry.checkpoint import INDEX, inspect
from registry.tensors import read_header, read_metadata
from stages.common.checkpoint import TORCH_DTYPES, Checkpoint
from stages.common.config import edited
from stages.common.rewriting import Change, Product, dropped, kept, rewrite
from tests.support import tiny
from tests.support.tiny import write_checkpoint

EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"
ROUTER = "model.layers.1.mlp.gate.weight"


@pytest.fixture
def source(tmp_path):
    return Checkpoint(write_checkpoint(tmp_path / "source", shards=3))


@pytest.fixture
def target(tmp_path):
    return tmp_path / "target"


def all_kept(source: Checkpoint, *, but: dict[str, Change] | None = None) -> list[Change]:
    return [(but or {}).get(name) or kept(source, name) for name in source.tensors]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ── reading ──


def test_every_tensor_is_read_as_the_safetensors_library_reads_it(tmp_path):
    weights = {
        dtype: tiny.Tensor(dtype, (2, 3), bytes(range(6 * torch.empty(0, dtype=of).element_size())))
        for dtype, of in TORCH_DTYPES.items()
        if dtype != "BOOL"
    } | {"none": tiny.Tensor("F32", (0, 3), b""), "number": tiny.Tensor("F32", (), b"\0\0\x80\x3f")}
    folder = write_checkpoint(tmp_path / "model")
    weights = dict(sorted(weights.items(), key=lambda item: -len(item[1].data)))  # aligned, as the library wants it
    tiny.write_safetensors(folder / "model.safetensors", weights)
    checkpoint = Checkpoint(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in weights:
            mine, theirs = checkpoint.tensor(name), file.get_tensor(name)
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
            assert mine.reshape(-1).view(torch.uint8).tolist() == theirs.reshape(-1).view(torch.uint8).tolist()


def test_a_tensor_is_found_in_whichever_shard_it_lies(source):
    assert set(source.weight_map.values()) == set(source.shards)
    assert len(source.shards) == 3
    for shard in source.shards:
        for name, tensor in load_file(source.folder / shard).items():
            assert torch.equal(source.tensor(name), tensor)
            assert source.weight_map[name] == shard


def test_a_tensor_that_is_not_there_is_an_error_that_names_it(source):
    with pytest.raises(IntegrityError, match=r"there is no tensor model\.x"):
        source.tensor("model.x")


def test_a_shard_that_is_cut_while_it_is_read_is_an_error(source):
    last = list(source.tensors)[-1]
    path = source.tensors[last].file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="ends within"):
        source.tensor(last)


def test_a_folder_of_links_that_is_replaced_meanwhile_is_read_as_it_was(tmp_path):
    old, new = write_checkpoint(tmp_path / "old", seed=1), write_checkpoint(tmp_path / "new", seed=2)
    place = tmp_path / "place"
    place.mkdir()
    for file in old.iterdir():
        (place / file.name).symlink_to(file)
    checkpoint = Checkpoint(place)
    for file in old.iterdir():
        (place / file.name).unlink()
        (place / file.name).symlink_to(new / file.name)
    assert torch.equal(checkpoint.tensor(EXPERT), Checkpoint(old).tensor(EXPERT))
    assert not torch.equal(checkpoint.tensor(EXPERT), Checkpoint(new).tensor(EXPERT))


# ── writing ──


@pytest.mark.parametrize("shards", [1, 3])
def test_with_nothing_changed_every_tensor_and_every_other_file_is_the_same(tmp_path, target, shards):
    source = Checkpoint(write_checkpoint(tmp_path / "source", shards=shards))
    rewrite(source, target, all_kept(source), config={})
    assert contents(target) == contents(source.folder)


def test_what_is_written_is_read_by_the_safetensors_library(source, target):
    def halved(weight: torch.Tensor) -> list[torch.Tensor]:
        return [weight[:8].clone(), torch.ones(3, dtype=torch.float64)]

    shape = source.tensors[EXPERT].shape
    products = (Product("half", "BF16", (8, shape[1])), Product("ones", "F64", (3,)))
    changes = all_kept(source, but={EXPERT: Change(EXPERT, products, halved), ROUTER: dropped(ROUTER)})
    rewrite(source, target, changes, config={})
    found = {name: tensor for shard in target.glob("*.safetensors") for name, tensor in load_file(shard).items()}
    assert torch.equal(found.pop("half"), source.tensor(EXPERT)[:8])
    assert torch.equal(found.pop("ones"), torch.ones(3, dtype=torch.float64))
    assert found.keys() == source.tensors.keys() - {EXPERT, ROUTER}
    for name, tensor in found.items():
        assert torch.equal(tensor, source.tensor(name))
    index = json.loads((target / INDEX).read_text())
    assert index["weight_map"]["half"] == index["weight_map"]["ones"] == source.weight_map[EXPERT]
    assert index["metadata"]["total_size"] == sum(
        tensor.size for shard in target.glob("*.safetensors") for tensor in read_header(shard).values()
    )


def test_every_tensor_is_aligned_to_its_own_numbers(source, target):
    odd = Product("odd", "U8", (3,))
    changes = all_kept(source, but={EXPERT: Change(EXPERT, (odd,), lambda _: [torch.ones(3, dtype=torch.uint8)])})
    rewrite(source, target, changes, config={})
    for shard in target.glob("*.safetensors"):
        for name, tensor in read_header(shard).items():
            size = 1 if name == "odd" else 2
            assert tensor.begin % size == 0, name
        assert read_metadata(shard) == {"format": "pt"}


def test_a_shard_of_which_nothing_is_left_is_not_written(source, target):
    shard = source.shards[1]
    changes = [dropped(name) if source.weight_map[name] == shard else kept(source, name) for name in source.tensors]
    rewrite(source, target, changes, config={})
    assert not (target / shard).exists()
    assert shard not in json.loads((target / INDEX).read_text())["weight_map"].values()


def refuse(source: Checkpoint, target: Path, changes: list[Change], says: str) -> None:
    with pytest.raises(IntegrityError, match=says):
        rewrite(source, target, changes, config={})
    assert not target.exists() or not (target / "config.json").exists()


def test_a_tensor_that_is_forgotten_is_an_error_that_names_it(source, target):
    changes = [change for change in all_kept(source) if change.source != EXPERT]
    refuse(source, target, changes, f"tensor {EXPERT} is not accounted for")
    assert not target.exists()


def test_a_tensor_that_is_used_twice_is_an_error_that_names_it(source, target):
    refuse(source, target, [*all_kept(source), dropped(EXPERT)], f"tensor {EXPERT} is accounted for more than once")
    refuse(
        source,
        target,
        all_kept(source, but={ROUTER: kept(source, ROUTER, rename=EXPERT)}),
        f"tensor {EXPERT} would be written more than once",
    )
    refuse(source, target, [*all_kept(source), dropped("model.x")], r"tensor model\.x is in a change, but not in the")
    assert not target.exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda weight: [weight.float()],
        lambda weight: [weight[:-1]],
        lambda weight: [weight.T[:, :-1]],
        lambda _: [],
        lambda weight: [weight, weight],
    ],
)
def test_a_product_that_is_not_what_was_announced_is_an_error(source, target, make):
    tensor = source.tensors[EXPERT]
    change = Change(EXPERT, (Product(EXPERT, tensor.dtype, tensor.shape),), make)
    refuse(source, target, all_kept(source, but={EXPERT: change}), "made")


def test_progress_counts_every_byte_of_the_source_once(source, target):
    seen = []
    changes = all_kept(source, but={EXPERT: dropped(EXPERT)})
    rewrite(source, target, changes, config={}, advance=seen.append)
    rewrite(source, target, changes, config={}, advance=seen.append)
    assert sum(seen) == 2 * source.size


def test_an_interrupted_work_is_finished_and_complete_shards_stay(source, target):
    calls = []

    def fails(weight: torch.Tensor) -> list[torch.Tensor]:
        calls.append(len(calls))
        if len(calls) == 1:
            raise IntegrityError("stopped")
        return [weight]

    name = next(name for name, shard in source.weight_map.items() if shard == source.shards[-1])
    tensor = source.tensors[name]
    changes = all_kept(source, but={name: Change(name, (Product(name, tensor.dtype, tensor.shape),), fails)})
    refuse(source, target, changes, "stopped")
    first = target / source.shards[0]
    before = first.stat()
    assert not (target / source.shards[-1]).exists()
    # such as a commit leaves: the shard is a blob too, so that writing into it would damage the registry
    blob = target.parent / "blob"
    os.link(first, blob)
    rewrite(source, target, changes, config={})
    assert first.stat().st_ino == before.st_ino
    assert contents(target) == contents(source.folder)


def test_a_shard_of_another_layout_is_replaced_and_never_written_into(source, target):
    rewrite(source, target, all_kept(source, but={EXPERT: dropped(EXPERT)}), config={"num_experts": 3})
    links = {path.name: target.parent / f"blob-{path.name}" for path in target.iterdir()}
    for name, blob in links.items():
        os.link(target / name, blob)
    before = {name: blob.read_bytes() for name, blob in links.items()}
    rewrite(source, target, all_kept(source), config={})
    assert contents(target) == contents(source.folder)
    assert {name: blob.read_bytes() for name, blob in links.items()} == before


SLOW = """
import sys, time
from pathlib import Path
from stages.common.checkpoint import Checkpoint
from stages.common.rewriting import Change, Product, rewrite
source = Checkpoint(Path(sys.argv[1]))
def slowly(weight):
    print("working", flush=True)
    time.sleep(0.02)
    return [weight]
changes = [Change(n, (Product(n, t.dtype, t.shape),), slowly) for n, t in source.tensors.items()]
rewrite(source, Path(sys.argv[2]), changes, config={})
"""


@pytest.mark.parametrize(("number", "moments"), [(signal.SIGKILL, (1, 45)), (signal.SIGINT, (20,))])
def test_killed_at_work_and_run_again_it_converges(source, target, number, moments):
    command = [sys.executable, "-c", SLOW, str(source.folder), str(target)]
    for lines in moments:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(lines):
            process.stdout.readline()
        asked = time.monotonic()
        process.send_signal(number)
        process.communicate(timeout=20)
        assert time.monotonic() - asked < 5
        for shard in target.glob("*.safetensors"):
            assert shard.read_bytes() == (source.folder / shard.name).read_bytes(), (
                "a shard has its name when it is whole"
            )
    rewrite(source, target, all_kept(source), config={})
    assert contents(target) == contents(source.folder)


# ── config.json ──


def test_only_the_changed_values_of_the_config_change(source, target):
    text = (source.folder / "config.json").read_text()
    rewrite(source, target, all_kept(source), config={"num_experts": 12})
    assert (target / "config.json").read_text() == text.replace('"num_experts": 4', '"num_experts": 12')


def test_the_line_ends_of_the_config_stay_as_they_were(source, target):
    config = source.folder / "config.json"
    config.write_bytes(config.read_bytes().replace(b"\n", b"\r\n"))
    rewrite(Checkpoint(source.folder), target, all_kept(source), config={"num_experts": 12, "new": {"a": [1]}})
    text = (target / "config.json").read_bytes()
    assert text.count(b"\r\n") == text.count(b"\n")
    assert text.startswith(config.read_bytes().replace(b'"num_experts": 4', b'"num_experts": 12')[:-5])
    assert json.loads(text)["new"] == {"a": [1]}


def test_numbers_and_spaces_stay_as_they_were_written():
    text = '{"b" : 1.0E-06,\n\t"a":[1,  2], "num_experts":  4 ,"é": "\\u00e9"}\n\n'
    assert edited(text, {"num_experts": 3}) == text.replace("  4 ", "  3 ")
    assert edited(text, {"a": None}) == text.replace("[1,  2]", "null")


def test_a_new_key_is_written_as_its_neighbours_are():
    assert edited('{\n  "a": 1\n}\n', {"b": [1, {"c": 2}]}) == json.dumps({"a": 1, "b": [1, {"c": 2}]}, indent=2) + "\n"
    assert json.loads(edited('{"a":1}', {"b": {"c": 2}})) == {"a": 1, "b": {"c": 2}}
    assert json.loads(edited("{}", {"b": 2, "c": 3})) == {"b": 2, "c": 3}
    assert json.loads(edited(" { } ", {"b": 2})) == {"b": 2}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=4), values, max_size=4)


@given(objects, objects, st.sampled_from([None, 0, 1, 2, "\t"]), st.booleans())
def test_editing_the_text_is_editing_the_object(before, changes, indent, ascii_only):
    text = json.dumps(before, indent=indent, ensure_ascii=ascii_only)
    after = edited(text, changes)
    assert json.loads(after) == before | changes
    assert list(json.loads(after)) == list(before | changes)
    assert edited(text, {}) == text


@given(objects, objects, objects, st.sampled_from([None, 0, 1, 2, "\t"]))
def test_editing_inside_an_object_is_editing_that_object(before, section, changes, indent):
    whole = before | {"text_config": section, "last": 1}
    text = json.dumps(whole, indent=indent)
    paths = {("text_config", key): value for key, value in changes.items()}
    after = edited(text, paths | {("last",): 2})
    assert json.loads(after) == whole | {"text_config": section | changes, "last": 2}


def test_the_count_inside_text_config_changes_and_not_a_space_besides():
    text = '{"text_config" : {\n      "num_experts":  256 ,"a":[1,  2]}, "num_experts_per_tok": 8}\n'
    assert edited(text, {("text_config", "num_experts"): 183}) == text.replace("256", "183")


def test_a_rewritten_checkpoint_is_whole(source, target):
    rewrite(source, target, all_kept(source), config={})
    assert inspect(target) == inspect(source.folder)
