"""SWE-bench/SWE-bench: an issue of a repository, and the patch that closed it.

{instance_id, repo, base_commit, problem_statement, patch, test_patch, hints_text, …}
"""

from __future__ import annotations

from stages.common.calibration.adapters.fields import Row, asked, text


def to_chat(row: Row) -> Row:
    question = f"Write a patch for the repository {text(row, 'repo')} that solves this issue:\n\n"
    return asked(question + text(row, "problem_statement"), f"```diff\n{text(row, 'patch').rstrip()}\n```")
