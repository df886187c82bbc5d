"""What a machine has to offer, read from the system's files."""

from __future__ import annotations

import pytest

from stages.common import machine

MIB = 1 << 20


@pytest.mark.parametrize(
    ("limit", "usage", "folder", "cached"),
    [
        ("memory.max", "memory.current", "", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory", "total_inactive_file"),
    ],
    ids=["second version", "first version"],
)
def test_files_that_a_container_has_read_count_as_memory_that_is_free(
    tmp_path, monkeypatch, limit, usage, folder, cached
):
    """The control group is written here as the kernel shows it; a limit of nothing is no limit."""
    group = tmp_path / folder
    group.mkdir(exist_ok=True)
    monkeypatch.setattr(machine, "_GROUP", tmp_path)
    whole = machine.available_memory()
    assert whole is not None
    (group / limit).write_text(f"{512 * MIB}\n")
    (group / usage).write_text(f"{400 * MIB}\n")
    (group / "memory.stat").write_text(f"anon {100 * MIB}\n{cached} {300 * MIB}\nactive_file 0\n")
    assert machine.available_memory() == 412 * MIB
    (group / limit).write_text("max\n")
    assert machine.available_memory() == pytest.approx(whole, rel=0.5)
