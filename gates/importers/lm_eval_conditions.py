"""What results of lm-eval state of the conditions: engine, template, sampling, and what makes a task itself."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gates import canonical
from gates.importers import source
from gates.importers.source import Source
from gates.records import Conditions

TOOL = "lm-eval"

_ENGINES = {
    "hf": "transformers",
    "hf-auto": "transformers",
    "huggingface": "transformers",
    "vllm": "vllm",
    "sglang": "sglang",
}
"""Of a server that lm-eval only talks to (local-chat-completions) nothing is stated."""
_SAMPLED = {"generate_until", "generate"}


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a results file: its metric, the mean of it over so many items, and its samples if they are there.

    `whole` is what a full score is in the file; `stated` is a share of it.
    """

    name: str
    metric: str
    filter: str
    filters: tuple[str, ...]
    averaged: bool
    whole: int
    stated: float
    items: int
    samples: Source | None


def conditions(run: Mapping[str, Any], leaves: Sequence[Task], dataset: str | None) -> Conditions:
    """The conditions that are stated; `dataset` is the digest of the items, if they are known."""
    config = run["config"] if isinstance(run.get("config"), dict) else {}
    arguments = _arguments(config.get("model_args"))
    engine = _ENGINES.get(str(config.get("model")))
    configs = {leaf.name: dict(run["configs"][leaf.name]) for leaf in leaves}
    generation = {name: _generation(each, config) for name, each in configs.items()}
    limits = {each.pop("max_gen_toks", None) for each in generation.values()}
    thinking = arguments.pop("enable_thinking", None)
    return source.known(
        engine=engine,
        engine_version=run.get("transformers_version") if engine == "transformers" else None,
        server_flags=source.flags(arguments) if engine is not None else None,
        chat_template=_template(run, local=engine is not None or config.get("model") == "dummy"),
        sampling=_sampling(generation, configs, config),
        thinking=("on" if thinking else "off") if isinstance(thinking, bool) else None,
        pack=source.identity(
            TOOL,
            {name: _asked(each) for name, each in configs.items()},
            {leaf.name: [run.get(field, {}).get(leaf.name) for field in ("versions", "n-shot")] for leaf in leaves},
            [run.get(field) for field in ("system_instruction", "fewshot_as_multiturn")],
            [config.get("limit"), config.get("fewshot_seed")],
        ),
        grader=source.identity(
            TOOL,
            run.get("lm_eval_version"),
            [[leaf.metric, leaf.filter, _graded(configs[leaf.name], leaf.metric)] for leaf in leaves],
        ),
        dataset=dataset,
        max_tokens=limits.pop() if len(limits) == 1 and isinstance(next(iter(limits)), int) else None,
        **source.served(arguments | ({"max_model_len": run["max_length"]} if "max_length" in run else {})),
    )


def _arguments(given: Any) -> dict[str, Any]:
    """model_args: an object, or as older versions have it one text, "a=1,b=2"."""
    if isinstance(given, str):
        pairs = (part.partition("=") for part in given.split(",") if part)
        return {name.strip(): _word(value.strip()) for name, _, value in pairs}
    return dict(given) if isinstance(given, dict) else {}


def _word(text: str) -> Any:
    """A value as the command line has it, and as a task's YAML has the same: 0.6 is a number in both."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"-?[0-9]{1,15}", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?[0-9]{1,15}\.[0-9]{1,15}", text) else text


_NOT_ASKED = {
    "metadata",  # repeats the model's arguments
    "dataset_kwargs",  # folders of that machine; the dataset has a digest of its own
    "metric_list",
    "filter_list",
    "generation_kwargs",
    "process_results",
    "should_decontaminate",
}


def _asked(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _NOT_ASKED}


def _graded(config: Mapping[str, Any], metric: str) -> list[Any]:
    metrics = [
        each for each in config.get("metric_list") or [] if isinstance(each, dict) and each.get("metric") == metric
    ]
    return [metrics, config.get("filter_list"), config.get("process_results")]


def _generation(config: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """What the task asks for, over which the command line's gen_kwargs go."""
    given = run.get("gen_kwargs")
    stated = _arguments(given) if isinstance(given, str) else given
    asked = config.get("generation_kwargs")
    merged = {**(asked if isinstance(asked, dict) else {}), **(stated if isinstance(stated, dict) else {})}
    for other in ("max_new_tokens", "max_tokens", "max_completion_tokens"):
        if other in merged:
            merged["max_gen_toks"] = merged.pop(other)
    return merged


def _sampling(
    generation: Mapping[str, dict[str, Any]], configs: Mapping[str, dict[str, Any]], run: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Unknown where a server may have had its own default: where neither a temperature nor do_sample is stated."""
    said: dict[str, Any] = defaultdict(dict)
    for name, each in generation.items():
        if configs[name].get("output_type") not in _SAMPLED:
            said["drawn"][name] = "nothing"
        elif "temperature" in each or each.get("do_sample") is False:
            said["drawn"][name] = source.settings(each)
        else:
            return None
    drawn = list(said["drawn"].values())
    if all(each == drawn[0] for each in drawn):
        said["drawn"] = drawn[0]
    seeds = {name: run[name] for name in ("random_seed", "numpy_seed", "torch_seed") if run.get(name) is not None}
    return {"drawn": said["drawn"], "seeds": source.plain(seeds)}


def _template(run: Mapping[str, Any], *, local: bool) -> str | None:
    """The digest of the chat template's text; of an empty one where the prompts were given without any."""
    if "chat_template" not in run:
        return None
    text, sha = run["chat_template"], run.get("chat_template_sha")
    if isinstance(text, str) and text:
        return canonical.digest(text.encode("utf-8", "replace"))
    if isinstance(sha, str) and re.fullmatch("[0-9a-f]{64}", sha):
        return sha
    return canonical.digest(b"") if text is None and local else None


def recorded(run: Mapping[str, Any], leaves: Sequence[Task]) -> dict[str, Any]:
    """What is worth knowing and need not agree."""
    config = run["config"] if isinstance(run.get("config"), dict) else {}
    said = {
        "tool": TOOL,
        "tool_version": run.get("lm_eval_version"),
        "model": run.get("model_source") or config.get("model"),
        "model_name": run.get("model_name"),
        "metric": sorted({f"{leaf.metric},{leaf.filter}" for leaf in leaves}),
        "task_versions": {leaf.name: (run.get("versions") or {}).get(leaf.name) for leaf in leaves},
        "few_shot": {leaf.name: (run.get("n-shot") or {}).get(leaf.name) for leaf in leaves},
        "batch_size": config.get("batch_size"),
    }
    return {name: source.plain(value) for name, value in said.items() if value is not None}
