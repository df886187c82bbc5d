"""Is this folder a whole checkpoint? Every file, tensor and number in config.json must agree with all the others.

Servers load damaged checkpoints without a word: vLLM accepts a quantised expert whose scale is missing, transformers a
config that states another number of experts. So completeness is checked here, by content, before a checkpoint gets
a name and whenever it is verified. Headers alone are read, so this takes moments for a model of any size.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gates import canonical
from gates.errors import IntegrityError, UsageError
from registry import fs
from registry.checkpoint.completeness import problems_of
from registry.checkpoint.facts import Problem, facts_of
from registry.contents import forbidden
from registry.families import architecture, family_of
from registry.manifests import Shape
from registry.tensors import Tensor, read_header

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_LARGEST_CONFIG = 16_000_000
_AGAIN = "fetch or make it again"


def inspect(folder: Path, files: Mapping[str, Path] | None = None) -> Shape:
    """What the checkpoint in `folder` is, if it is whole and consistent.

    Args:
        files: where each of its files is, by name, if they lie elsewhere, or not all that lies there is the model's.

    Raises:
        UsageError: a family or a quantisation that Sluice does not know.
        IntegrityError: something is damaged, missing, too much or forbidden; names files and tensors.
    """
    shape, problems = examine(folder, files)
    if problems or shape is None:
        more = [str(problem) for problem in problems[:10]] + (
            [f"and {len(problems) - 10} more"] if problems[10:] else []
        )
        raise IntegrityError("the checkpoint is not whole:\n  " + "\n  ".join(more), where=str(folder), remedy=_AGAIN)
    return shape


def examine(folder: Path, files: Mapping[str, Path] | None = None) -> tuple[Shape | None, list[Problem]]:
    """As `inspect`, but every problem at once; the shape is None where it cannot be told.

    Raises:
        UsageError: as `inspect`.
        IntegrityError: there is no config.json that could be read, so that nothing else can be judged.
    """
    paths, problems = _files(_walk(folder) if files is None else files)
    path = paths.get(CONFIG, folder / CONFIG)
    config = read_config(path.parent)
    where = str(folder / CONFIG)
    family = family_of(config, where=where)
    block = quantization_block(config, where=where)
    tensors, damage = _tensors(paths)
    problems += damage
    if damage:
        return None, problems  # with a shard unreadable, every tensor in it would be reported missing
    try:
        facts = facts_of(architecture(family, config, where=where), tensors, block)
    except UsageError as error:
        return None, [*problems, Problem(CONFIG, error.what.removeprefix(CONFIG).lstrip(": "))]
    return facts.shape(), problems + problems_of(facts)


def headers(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the checkpoint in `folder` by name; none where there are no weights. Nothing else is checked.

    Raises:
        IntegrityError: a safetensors file is malformed.
    """
    shards = sorted(folder.glob("*.safetensors"))
    return {name: tensor for shard in shards for name, tensor in read_header(shard).items()}


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """
    Raises:
        IntegrityError: there is no config.json, or it holds no JSON object.
    """
    path = folder / name
    try:
        if path.exists() and not path.is_file():
            raise IntegrityError("config.json is no regular file", where=str(path))
        with path.open("rb") as file:
            data = file.read(_LARGEST_CONFIG + 1)
    except OSError as error:
        raise IntegrityError(
            f"config.json cannot be read: {error.strerror}", where=str(path), remedy="is this a model's folder?"
        ) from None
    if len(data) > _LARGEST_CONFIG:
        raise IntegrityError(f"config.json is larger than {_LARGEST_CONFIG} bytes", where=str(path), remedy=_AGAIN)
    try:
        config = canonical.loads(data, where=str(path))
    except IntegrityError as error:
        error.remedy = _AGAIN
        raise
    if not isinstance(config, dict):
        raise IntegrityError("config.json holds no object", where=str(path), remedy=_AGAIN)
    return config


def quantization_block(config: dict[str, Any], *, where: str | None = None) -> tuple[int, int] | None:
    """Rows and columns of the blocks that share a scale in block FP8; None if the checkpoint is not quantised.

    Raises:
        UsageError: it is quantised in some other way.
    """
    stated = config.get("quantization_config")
    if stated is None:
        return None
    block = stated.get("weight_block_size") if isinstance(stated, dict) else None
    kept = (stated.get("modules_to_not_convert") or []) if isinstance(stated, dict) else None
    if (
        not isinstance(stated, dict)
        or stated.get("quant_method") != "fp8"
        or stated.get("fmt", "e4m3") != "e4m3"
        or stated.get("activation_scheme", "dynamic") != "dynamic"
        or not (isinstance(block, list) and len(block) == 2 and all(type(side) is int and side > 0 for side in block))
        or not (isinstance(kept, list) and all(isinstance(module, str) for module in kept))
    ):
        raise UsageError(
            "config.json: quantization_config is not the one that Sluice knows",
            where=where,
            remedy="use block FP8: quant_method fp8, fmt e4m3, activation_scheme dynamic, weight_block_size [128, 128]",
        )
    return block[0], block[1]


def _walk(folder: Path) -> dict[str, Path]:
    """Everything below `folder` that is no folder, by name; a link to a folder is none."""
    found = {}
    for base, folders, names in fs.walk(folder):
        links = [name for name in folders if Path(base, name).is_symlink()]
        for name in sorted([*names, *links]):
            path = Path(base, name)
            found[path.relative_to(folder).as_posix()] = path
    return found


def _files(files: Mapping[str, Path]) -> tuple[dict[str, Path], list[Problem]]:
    """The regular files among `files`, and what may not lie there."""
    found, problems = {}, []
    for name, path in files.items():
        try:
            mode = path.stat().st_mode
            # a pipe or a device must not be opened: it could block, or never end
            kind = forbidden(path) if stat.S_ISREG(mode) else "not a regular file"
            kind = "a link to a folder" if stat.S_ISDIR(mode) else kind
        except OSError as error:
            kind = f"a file that cannot be read ({error.strerror})"
        if kind:
            problems.append(Problem(name, f"it is {kind}"))
        else:
            found[name] = path
    return found, problems


def _tensors(paths: Mapping[str, Path]) -> tuple[dict[str, Tensor], list[Problem]]:
    """Every tensor of the checkpoint by name, and where headers, shards and index disagree."""
    tensors: dict[str, Tensor] = {}
    held: dict[str, str] = {}
    problems = []
    shards = [name for name in paths if name.endswith(".safetensors")]
    for shard in shards:
        try:
            header = read_header(paths[shard])
        except IntegrityError as error:
            tensor = (error.where or "").partition(", tensor ")[2]
            problems.append(Problem(shard, f"tensor {tensor}: {error.what}" if tensor else error.what))
            continue
        twice = header.keys() & tensors.keys()
        problems += [Problem(shard, f"tensor {name} is in {held[name]} too") for name in sorted(twice)]
        tensors |= header
        held |= dict.fromkeys(header, shard)
    if not problems:
        weight_map = None
        if INDEX in paths:
            try:
                weight_map = _weight_map(paths[INDEX])
            except IntegrityError as error:
                problems.append(Problem(INDEX, error.what))
        if not problems:
            problems += _placement(shards, held, weight_map)
    return tensors, problems


def _weight_map(path: Path) -> dict[str, str]:
    index = canonical.loads(path.read_bytes(), where=str(path))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise IntegrityError("the index has no weight_map of names to files", where=str(path))
    return weight_map


def _placement(shards: list[str], held: dict[str, str], weight_map: dict[str, str] | None) -> Iterator[Problem]:
    """Where the index and the shards disagree. `held` is the shard of each tensor."""
    for shard in shards:
        if "/" in shard:
            yield Problem(shard, "weights in a folder of their own, where no loader looks")
    if weight_map is None:
        # loaders read every .safetensors file they find, and stop at a tensor that the model does not have
        extra = [shard for shard in shards if shard != SINGLE]
        yield from (Problem(shard, "a safetensors file that no index names") for shard in extra)
        if not shards:
            yield Problem(SINGLE, "there are no weights", "model.safetensors, or shards and their index")
        return
    for shard in sorted(set(weight_map.values()) - set(shards)):
        yield Problem(shard, f"{INDEX} names this file, but it is not there")
    for shard in sorted(set(shards) - set(weight_map.values())):
        yield Problem(shard, f"{INDEX} does not name this file")
    for name in sorted(weight_map.keys() | held.keys()):
        stated, actual = weight_map.get(name), held.get(name)
        if stated is None:
            yield Problem(actual or "", f"tensor {name} is not in {INDEX}")
        elif stated != actual:
            yield Problem(stated, f"tensor {name} is not in the file that {INDEX} names", actual)
