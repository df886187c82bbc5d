"""allenai/c4: the text of a web page. {text, timestamp, url}"""

from __future__ import annotations

from stages.common.calibration.adapters.fields import Row, text


def to_chat(row: Row) -> Row:
    return {"messages": [{"role": "user", "content": text(row, "text")}]}
