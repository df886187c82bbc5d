"""open-r1/Mixture-of-Thoughts (code, math, science): problems with the thoughts that led to an answer.

{messages: [{role, content}], num_tokens, source}; the answers begin with <think>.
"""

from __future__ import annotations

from stages.common.calibration.adapters.fields import Row, listed, spoken, text


def to_chat(row: Row) -> Row:
    messages = []
    for number, message in enumerate(listed(row, "messages")):
        path = f"messages[{number}]."
        role, content = text(message, "role", path=path), text(message, "content", path=path)
        messages.append(spoken(content) if role == "assistant" else {"role": role, "content": content})
    return {"messages": messages}
