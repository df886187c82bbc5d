"""What the toy scores on each of its skills: the items of its packs, answered at temperature 0 without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.toy import skills

PROJECT = Path(__file__).resolve().parents[2]
_TOKENS = 80
"""The longest answer."""


@torch.inference_mode()
def scores(folder: Path) -> dict[str, float]:
    """Percent of the items that the model in `folder` answers as expected, by skill."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    found = {}
    for skill in skills.SKILLS:
        lines = (PROJECT / "packs" / "toy" / f"{skill}.jsonl").read_text(encoding="utf-8").splitlines()
        items = [json.loads(line) for line in lines]
        prompts = [
            tokenizer.apply_chat_template(
                item["messages"], tools=item.get("tools"), add_generation_prompt=True, tokenize=False
            )
            for item in items
        ]
        asked = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
        said = model.generate(**asked, max_new_tokens=_TOKENS, do_sample=False)[:, asked["input_ids"].shape[1] :]
        texts = [
            text.rpartition("</think>")[2].strip() for text in tokenizer.batch_decode(said, skip_special_tokens=True)
        ]
        right = sum(_is(text, item["expected"]) for text, item in zip(texts, items, strict=True))
        found[skill] = round(100 * right / len(items), 1)
    return found


def _is(text: str, expected: dict[str, Any]) -> bool:
    """The three ways in which an item says what it wants."""
    if "answer" in expected:
        return text == expected["answer"]
    try:
        call = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
        return all(
            json.dumps(call[key], sort_keys=True) == json.dumps(value, sort_keys=True)
            for key, value in expected.items()
        )
    except (ValueError, KeyError, TypeError):
        return False
