"""bigcode/bigcodebench: a task in words, and the code before and after the place where the answer belongs.

{task_id, instruct_prompt, code_prompt, canonical_solution, …}
"""

from __future__ import annotations

from stages.common.calibration.adapters.fields import Row, asked, text


def to_chat(row: Row) -> Row:
    solution = text(row, "code_prompt") + text(row, "canonical_solution")
    return asked(text(row, "instruct_prompt"), f"```python\n{solution.rstrip()}\n```")
