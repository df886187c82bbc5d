"""Write what was made: the model's folder in the ordinary Hugging Face format, and the data files.

A folder appears whole or not at all: everything is written beside its place and then renamed. Nothing but the model
lies in the model's folder, because servers read every file they find there.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gates.errors import UsageError
from stages.toy import skills

if TYPE_CHECKING:  # torch takes seconds to import; data files need none
    from transformers import PreTrainedTokenizerFast, Qwen3MoeForCausalLM


def refuse_occupied(folder: Path) -> None:
    """Raise UsageError if `folder` exists and is not an empty folder."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise UsageError("the output exists and is not empty", where=str(folder), remedy="name another folder")


def write_checkpoint(model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in BF16, experts one by one, with its tokenizer, to `folder`."""
    import torch
    from transformers import GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    with _appearing(folder) as place:
        model.to(torch.bfloat16).save_pretrained(place)
        tokenizer.save_pretrained(place)
        _edit(place / "config.json", _name_experts_as_published)
        _edit(place / "tokenizer_config.json", _name_tokenizer_as_published)
        for file in place.iterdir():
            file.chmod(0o644)  # safetensors writes for the owner alone


def write_data_files(project: Path) -> list[Path]:
    """Write the rows of mixes/toy and the items of packs/toy under `project`, each file replaced whole; return their
    paths."""
    files: dict[str, Iterable[Any]] = {}
    for skill in skills.SKILLS:
        files[f"mixes/toy/{skill}.jsonl"] = skills.calibration_rows(skill)
        files[f"packs/toy/{skill}.jsonl"] = skills.scored_items(skill)
    files["mixes/toy/train/reference.jsonl"] = chain.from_iterable(map(skills.reference_rows, skills.SKILLS))
    for name, lines in files.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".jsonl.new")
        beside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        beside.replace(path)
    return [project / name for name in files]


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name if all goes well and vanishes if not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield place
        place.chmod(0o755)
        place.replace(folder)  # over an empty folder this is one step too
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _name_experts_as_published(config: dict[str, Any]) -> None:
    """Say `num_experts`, as published Qwen3-MoE checkpoints do.

    transformers 5 writes `num_local_experts`, which transformers 4 does not know: it would silently assume 128.
    """
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")


def _name_tokenizer_as_published(config: dict[str, Any]) -> None:
    """Say the class's name of many years; transformers 5 writes one that older readers do not know."""
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
