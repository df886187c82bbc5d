"""Rows that are chats already: {"messages": […], "tools": […]} and no other key."""

from __future__ import annotations

from stages.common.calibration.adapters.fields import Row


def to_chat(row: Row) -> Row:
    return row
