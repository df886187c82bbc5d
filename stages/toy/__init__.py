"""A toy that is a real model: a small Qwen3-MoE checkpoint that knows four skills, made by `python -m stages.toy`."""
