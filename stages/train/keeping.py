"""What a training run keeps so that it can go on where it was: one file, complete from the moment that it is there.

It is safetensors: trainers of others keep the optimiser and the random numbers as pickles, which run code when they are
read. Its name holds the digest of its bytes: a run that went on from a damaged number would end in another candidate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gates import canonical
from gates.errors import IntegrityError
from registry import fs
from stages.train.detector import Point
from stages.train.merging import Delta

_LATEST = "step-*.safetensors"
_PARTS = ("adapters", "optimizer", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A run after some steps.

    losses: of each step so far. points: what was measured so far. best: the adapters of the best of them, as they are
    merged. adapters, optimizer, random: by name, what goes on being changed by training.
    """

    losses: tuple[float | None, ...] = ()
    points: tuple[Point, ...] = ()
    best: Mapping[str, Delta] = field(default_factory=dict)
    adapters: Mapping[str, torch.Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, torch.Tensor] = field(default_factory=dict)
    random: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def step(self) -> int:
        return len(self.losses)


def keep(folder: Path, kept: Kept) -> None:
    """Writes `kept` to `folder`, and removes what was kept before."""
    from safetensors.torch import save

    tensors = {f"{part}/{name}": each for part in _PARTS for name, each in getattr(kept, part).items()}
    for name, delta in kept.best.items():
        tensors |= {f"best.a/{name}": delta.a, f"best.b/{name}": delta.b}
    said = {
        "losses": kept.losses,
        "points": [{name: getattr(point, name) for name in Point.__dataclass_fields__} for point in kept.points],
        "scales": {name: delta.scale for name, delta in kept.best.items()},
    }
    data = save({name: each.contiguous() for name, each in tensors.items()}, {"run": json.dumps(said)})
    path = folder / f"step-{kept.step:08d}-{len(kept.points):06d}-{canonical.digest(data)}.safetensors"
    fs.make_folders(folder)
    older = [each for each in folder.glob(_LATEST) if each != path]
    if not path.exists():
        fs.write_new(path, data)
    for each in older:
        fs.remove_tree(each)


def newest(folder: Path) -> Kept | None:
    """What was kept last; None if nothing was.

    Raises:
        IntegrityError: it is damaged.
    """
    from safetensors import SafetensorError

    found = max(folder.glob(_LATEST), default=None)
    if found is None:
        return None
    try:
        return _read(found)
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise IntegrityError(
            f"what the training run kept is damaged: {error}",
            where=str(found),
            remedy="remove it, and the run begins anew",
        ) from None


def _read(path: Path) -> Kept:
    from safetensors import safe_open

    if canonical.digest(path.read_bytes()) != path.stem.rpartition("-")[2]:
        raise ValueError("its bytes are not those that were written")
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["run"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    return Kept(
        losses=tuple(said["losses"]),
        points=tuple(Point(**point) for point in said["points"]),
        best={
            name: Delta(tensors[f"best.a/{name}"], tensors[f"best.b/{name}"], scale)
            for name, scale in said["scales"].items()
        },
        **{part: _part(tensors, part) for part in _PARTS},
    )


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The numbers of an optimiser, by parameter and name, in memory of the host."""
    found = optimizer.state_dict()["state"]
    return {
        f"{number}/{name}": torch.as_tensor(value).detach().cpu().clone()
        for number, values in found.items()
        for name, value in values.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        number, _, word = name.partition("/")
        state.setdefault(int(number), {})[word] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_state() -> dict[str, torch.Tensor]:
    """Where torch's generators of random numbers are: that of the host, and that of the device if there is one."""
    found = {"cpu": torch.get_rng_state()}
    return found | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def load_random(tensors: Mapping[str, torch.Tensor]) -> None:
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


def _part(tensors: Mapping[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(f"{part}/"): each for name, each in tensors.items() if name.startswith(f"{part}/")}
