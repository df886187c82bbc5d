"""One flipped bit anywhere is found, and so are shards that changed places, were cut or are gone."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import pytest

from gates.errors import SluiceError
from registry import channels
from registry.checkpoint import INDEX
from registry.store import Store
from registry.verify import verify, verify_records
from tests.faults import scenarios
from tests.support import faults, stores, tiny

KINDS = ["format.json", "blobs/sha256", "manifests", "evidence", "verdicts", "generations", "log"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A served candidate of two shards with an index, its evidence and its verdict; everything in it is needed."""
    folder = tmp_path_factory.mktemp("damage")
    store = Store.init(folder / "models")
    for seed, name in enumerate(("toy", "other")):
        store.add(name, tiny.write_checkpoint(folder / name, shards=2, seed=seed))
        stores.judge(store, name, scenarios.policy_file())
    scenarios.promotion.promote(store, "toy", policy=scenarios.judging.read_policy(scenarios.policy_file()))
    scenarios.promotion.promote(store, "other")
    return folder / "models"


def problems(root: Path) -> list[str]:
    """What `verify --all`, `log --verify` and opening say; none of it may be anything but an error of ours."""
    found = []
    try:
        store = Store.open(root)
        for name in store.names():
            found += [str(each) for each in (*verify(store, name, full=True), *verify_records(store, name))]
        store.log.verify()
        channels.verify(store)
    except SluiceError as error:
        found.append(str(error))
    return found


def test_what_is_sound_has_no_problems(made):
    assert problems(made) == []


@pytest.mark.parametrize("kind", KINDS)
def test_one_flipped_bit_is_found_wherever_it_is(made, memory_path, thorough, kind):
    root = memory_path / "models"
    shutil.copytree(made, root, symlinks=True)
    files = [path for path in [root / kind, *sorted((root / kind).rglob("*"))] if path.is_file()]
    assert files
    random = Random(kind)
    for path in files:
        data = path.read_bytes()
        bits = range(8 * len(data))
        chosen = [*random.sample(bits, min(len(bits), 60 if thorough else 3)), 0, 8 * len(data) - 1]
        for bit in chosen:
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            _write(path, bytes(changed))
            faults.count_fault()
            assert problems(root), f"bit {bit} of {path.relative_to(root)}"
            _restore(made, root)
    assert problems(root) == []


@pytest.mark.parametrize("damage", ["swapped", "dropped", "cut", "longer", "emptied"])
def test_shards_that_are_not_what_they_were_are_found_at_once_and_named(made, memory_path, damage):
    """The fast look is enough for what changes a size; what changed places is found by its bytes."""
    root = memory_path / "models"
    shutil.copytree(made, root, symlinks=True)
    store = Store.open(root)
    first, second = (
        store.layout.blob(file.digest)
        for name, file in store.candidate("toy").manifest.files.items()
        if name.endswith(".safetensors")
    )
    data = first.read_bytes()
    if damage == "swapped":
        _write(first, second.read_bytes())
        _write(second, data)
    elif damage == "dropped":
        first.unlink()
    else:
        _write(first, {"cut": data[:-7], "longer": data + b"\0", "emptied": b""}[damage])
    faults.count_fault()
    found = "\n".join(map(str, verify(store, "toy", full=damage == "swapped")))
    assert "model-00001-of-00002.safetensors" in found
    with pytest.raises(SluiceError, match="damaged"):
        scenarios.promotion.promote(store, "toy")


def test_links_that_changed_places_are_found(made, memory_path):
    """Each shard is whole, but under the other's name: the index knows better."""
    root = memory_path / "models"
    shutil.copytree(made, root, symlinks=True)
    one, two = sorted((root / "candidates/toy/model").glob("*.safetensors"))
    assert (root / "candidates/toy/model" / INDEX).exists()
    targets = one.readlink(), two.readlink()
    for link, target in ((one, targets[1]), (two, targets[0])):
        link.unlink()
        link.symlink_to(target)
    faults.count_fault()
    assert any(one.name in each for each in map(str, verify(Store.open(root), "toy", full=False)))


def _write(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o444)


def _restore(made: Path, root: Path) -> None:
    shutil.rmtree(root)
    shutil.copytree(made, root, symlinks=True)
