"""Spans of tensors, shards of a size, work in pieces: what `rewrite` does beyond one tensor after another."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from gates.errors import IntegrityError
from registry.checkpoint import INDEX, SINGLE, inspect
from registry.tensors import read_header
from stages.common import rewriting
from stages.common.checkpoint import Checkpoint
from stages.common.rewriting import Change, Product, Span, dropped, kept, rewrite
from stages.common.shards import packed
from tests.support import tiny

FUSED = "model.layers.1.mlp.experts.down_proj"


@pytest.fixture
def source(tmp_path):
    return Checkpoint(tiny.make(tmp_path / "source", "qwen3_moe", fused=True, shards=2))


@pytest.fixture
def target(tmp_path):
    return tmp_path / "target"


def but(source: Checkpoint, *changes: Change) -> list[Change]:
    named = {change.source for change in changes}
    return [*(kept(source, name) for name in source.tensors if name not in named), *changes]


def slices(source: Checkpoint, name: str, indices) -> tuple[Span, ...]:
    size = math.prod(source.tensors[name].shape[1:])
    return tuple(Span(begin=index * size, end=(index + 1) * size) for index in indices)


def written(target: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for shard in target.glob("*.safetensors") for name, tensor in load_file(shard).items()}


# ── spans ──


def test_spans_are_copied_in_the_order_in_which_they_are_named(source, target):
    experts, *rest = source.tensors[FUSED].shape
    order = [5, 0, 7]
    stay = Change(FUSED, (Product(FUSED, "BF16", (3, *rest)),), spans=slices(source, FUSED, order))
    others = [each for each in range(experts) if each not in order]
    rewrite(source, target, but(source, stay, dropped(FUSED, slices(source, FUSED, others))), config={})
    assert torch.equal(written(target)[FUSED], source.tensor(FUSED)[order])


def test_one_tensor_becomes_many_each_made_of_its_own_span(source, target):
    experts, *rest = source.tensors[FUSED].shape
    changes = [
        Change(
            FUSED,
            (Product(f"expert.{each}", "F32", tuple(rest)),),
            lambda weight: [weight.float() * 2],
            spans=slices(source, FUSED, [each]),
            rows=1,
        )
        for each in range(experts)
    ]
    rewrite(source, target, but(source, *changes), config={})
    made, whole = written(target), source.tensor(FUSED)
    assert FUSED not in made
    for each in range(experts):
        assert torch.equal(made[f"expert.{each}"], whole[each].float() * 2)


@pytest.mark.parametrize(
    ("indices", "says"),
    [
        ([0, 1, 2, 3, 4, 5, 6], "is not accounted for: no change names a part of it"),
        ([1, 2, 3, 4, 5, 6, 7], "is not accounted for: no change names a part of it"),
        ([0, 1, 2, 4, 5, 6, 7], "is not accounted for: no change names a part of it"),
        ([0, 1, 2, 3, 3, 4, 5, 6, 7], "is accounted for more than once"),
        ([], "is not accounted for: no change names a part of it"),
    ],
)
def test_a_span_that_is_forgotten_or_used_twice_is_an_error_and_nothing_is_written(source, target, indices, says):
    change = Change(
        FUSED,
        (Product(FUSED, "BF16", (len(indices), *source.tensors[FUSED].shape[1:])),),
        spans=slices(source, FUSED, indices),
    )
    with pytest.raises(IntegrityError, match=f"tensor {FUSED} {says}"):
        rewrite(source, target, but(source, change), config={})
    assert not target.exists()


@given(st.lists(st.integers(0, 12), max_size=6).map(sorted), st.data())
def test_any_way_to_cut_a_tensor_is_accounted_for_and_any_cut_left_out_is_not(tmp_path_factory, cuts, data):
    folder = tmp_path_factory.getbasetemp() / "cut"
    if not folder.exists():
        tiny.make(folder, "qwen3_moe", fused=True)
    source = Checkpoint(folder)
    total = math.prod(source.tensors[FUSED].shape)
    edges = [0, *(total * cut // 12 for cut in cuts), total]
    spans = tuple(Span(begin=begin, end=end) for begin, end in pairwise(edges))
    order = data.draw(st.permutations(spans))
    changes = [dropped(name) for name in source.tensors if name != FUSED]
    rewriting._account(source, [*changes, *(dropped(FUSED, (span,)) for span in order)])
    lost = data.draw(st.sampled_from([span for span in spans if span.end > span.begin]))
    left = [dropped(FUSED, (span,)) for span in order if span != lost]
    with pytest.raises(IntegrityError, match="not accounted for"):
        rewriting._account(source, [*changes, *left])


# ── pieces ──


def test_a_large_tensor_is_made_a_few_rows_at_a_time(tmp_path, target, monkeypatch):
    monkeypatch.setattr(rewriting, "_PIECE", 5000)
    source = Checkpoint(tiny.write_checkpoint(tmp_path / "source"))
    name = "model.embed_tokens.weight"
    rows, columns = source.tensors[name].shape
    seen = []

    def make(weight: torch.Tensor) -> list[torch.Tensor]:
        seen.append(len(weight))
        return [weight.float(), weight[::4, :1].contiguous()]

    products = (Product(name, "F32", (rows, columns)), Product("firsts", "BF16", (-(-rows // 4), 1)))
    rewrite(source, target, but(source, Change(name, products, make, rows=4)), config={})
    assert sum(seen) == rows
    assert len(seen) > 1
    assert all(count % 4 == 0 for count in seen[:-1])
    assert max(seen) * columns * 2 <= 5000
    made = written(target)
    assert torch.equal(made[name], source.tensor(name).float())
    assert torch.equal(made["firsts"], source.tensor(name)[::4, :1])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda weight: [weight[:-1]], "bytes too few"),
        (lambda weight: [weight.float()], "was made as"),
        (lambda weight: [weight[:, :-1]], "was made as"),
        (lambda weight: [torch.cat([weight, weight])], "was made as"),
    ],
)
def test_pieces_that_do_not_add_up_to_what_was_announced_are_an_error(source, target, make, says):
    tensor = source.tensors[FUSED]
    rows = math.prod(tensor.shape[:-1])
    change = Change(FUSED, (Product(FUSED, tensor.dtype, (rows, tensor.shape[-1])),), make, rows=1)
    with pytest.raises(IntegrityError, match=says):
        rewrite(source, target, but(source, change), config={})
    assert not (target / "config.json").exists()


MEMORY = """
import resource, sys
from pathlib import Path
import torch
from stages.quantize import write_fp8
from stages.common.checkpoint import Checkpoint
Checkpoint(Path(sys.argv[1]))
torch.ones(256, 256).to(torch.float8_e4m3fn)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_fp8(Path(sys.argv[1]), Path(sys.argv[2]), what="quantize")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_follow_the_size_of_a_tensor_or_a_shard(tmp_path):
    """192 MiB of experts in two tensors of one shard, which has 200 MiB; a few pieces of 8 MiB are in memory."""
    config = tiny.configuration(layers=1, experts=64, hidden=1024, intermediate=512, top_k=2)
    folder = tmp_path / "source"
    folder.mkdir()
    tiny.write_json(folder / "config.json", config)
    tiny.write_tokenizer(folder)
    from registry.families import architecture_of

    pool = os.urandom(1 << 20).translate(bytes(byte & 0x3F for byte in range(256)))
    weights = {
        spec.name: tiny.Tensor(spec.dtype, spec.shape, (pool * (spec.size // len(pool) + 1))[: spec.size])
        for spec in architecture_of(config).tensors(fused=True, mtp=False)
    }
    assert sum(len(tensor.data) for tensor in weights.values()) > 195 << 20
    tiny.write_weights(folder, weights)
    command = [sys.executable, "-c", MEMORY, str(folder), str(tmp_path / "target")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 128 << 10  # KiB
    assert inspect(tmp_path / "target").quantization == "fp8-block"


# ── shards ──


@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3), min_size=1, max_size=30), st.integers(1, 100))
def test_shards_are_filled_in_order_and_none_could_take_the_next_group(sizes, limit):
    groups = [
        tuple(Product(str((g, n)), "U8", (size,)) for n, size in enumerate(group)) for g, group in enumerate(sizes)
    ]
    names = packed(groups, limit)
    assert names == sorted(names)
    shards = {name: [sum(group) for group, each in zip(sizes, names, strict=True) if each == name] for name in names}
    assert all(sum(shard) <= limit or len(shard) == 1 for shard in shards.values())
    for shard, after in pairwise(shards.values()):
        assert sum(shard) + after[0] > limit
    assert list(shards) == (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors" for n in range(len(shards))]
    )


@pytest.mark.parametrize("size", [1, 3000, 10_000_000])
def test_shards_of_a_size_hold_the_same_tensors(source, target, size):
    rewrite(source, target, but(source), config={}, shard_size=size)
    assert inspect(target) == inspect(source.folder)
    shards = sorted(target.glob("*.safetensors"))
    for shard in shards:
        header = read_header(shard)
        assert len(header) == 1 or sum(tensor.size for tensor in header.values()) <= size
    assert (len(shards) == 1) == (size > source.size)
    if len(shards) == 1:
        assert not (target / INDEX).exists()
    else:
        index = json.loads((target / INDEX).read_text())
        assert index["metadata"]["total_size"] == source.size
    made = written(target)
    for name in source.tensors:
        assert torch.equal(made[name], source.tensor(name))


def test_a_shard_is_sealed_when_its_tensors_are_made_and_before_it_has_its_name(source, target):
    sealed = {}

    def seal(shard, names):
        assert threading.current_thread() is not threading.main_thread()
        assert not (target / shard).exists()
        sealed[shard] = set(names)

    rewrite(source, target, but(source), config={}, shard_size=20_000, seal=seal)
    assert sealed == {shard.name: set(read_header(shard)) for shard in target.glob("*.safetensors")}
    again = []
    (target / "config.json").unlink()
    rewrite(source, target, but(source), config={}, shard_size=20_000, seal=lambda shard, _: again.append(shard))
    assert again == []


def test_a_shard_of_empty_tensors_alone_is_written_too(tmp_path, target):
    folder = tiny.write_checkpoint(tmp_path / "source")
    tiny.write_safetensors(folder / SINGLE, {"nothing": tiny.Tensor("F32", (0, 3), b"")})
    source = Checkpoint(folder)
    rewrite(source, target, [kept(source, "nothing")], config={})
    assert (target / SINGLE).read_bytes() == (folder / SINGLE).read_bytes()


def test_what_a_seal_refuses_has_no_name(source, target):
    def seal(shard, _names):
        raise IntegrityError(f"{shard} is not good")

    with pytest.raises(IntegrityError, match="is not good"):
        rewrite(source, target, but(source), config={}, seal=seal)
    assert list(target.glob("*.safetensors")) == []
    assert not (target / "config.json").exists()


def test_no_descriptor_is_left_open_whether_it_ends_well_or_not(source, target):
    before = len(list(Path("/proc/self/fd").iterdir()))
    rewrite(source, target, but(source), config={}, shard_size=3000)
    failing = Change(FUSED, (Product(FUSED, "BF16", source.tensors[FUSED].shape),), lambda _: [])
    for _ in range(3):
        with pytest.raises(IntegrityError):
            rewrite(source, target.parent / "failing", but(source, failing), config={})
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
