"""Run by vLLM's own Python: loads one checkpoint after another, without a server, and says what came of each.

    python vllm_offline.py '[{"model": "folder", "options": {"dtype": "float32"}, "prompt": [10, 11, 12], "tokens": 8}]'

With a prompt it is answered greedily, token by token; without one the model is only loaded. One JSON line for each:
{"tokens": [...]}, {"loaded": true} or {"error": "..."}.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

OPTIONS = {"enforce_eager": True, "max_model_len": 128, "max_num_seqs": 2, "max_num_batched_tokens": 128}


def done(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    try:
        engine = LLM(model=job["model"], **OPTIONS, **job["options"])
    except Exception as error:  # noqa: BLE001 - whatever keeps it from loading is the finding
        return {"error": f"{type(error).__name__}: {error}"}
    if "prompt" not in job:
        return {"loaded": True}
    asked = SamplingParams(temperature=0, max_tokens=job["tokens"], ignore_eos=True)
    answer = engine.generate([{"prompt_token_ids": job["prompt"]}], asked, use_tqdm=False)
    return {"tokens": list(answer[0].outputs[0].token_ids)}


if __name__ == "__main__":
    for each in json.loads(sys.argv[1]):
        sys.stdout.write("\nRESULT " + json.dumps(done(each)) + "\n")
        sys.stdout.flush()
        gc.collect()
