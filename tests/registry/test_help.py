"""`--help` of every command: whole sentences, and a word on everything that a command takes."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from registry.cli import app


def commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, (*words, name))


ALL = list(commands(get_command(app)))


@pytest.mark.parametrize(("words", "command"), ALL, ids=lambda each: " ".join(each) if isinstance(each, tuple) else "")
def test_in_a_window_of_80_columns_help_is_whole_and_leaves_nothing_out(words: tuple[str, ...], command: click.Command):
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    assert max(map(len, shown.stdout.splitlines())) <= 80
    listed = shown.stdout.partition("\nCommands:\n")[2]
    assert not [line for line in listed.splitlines() if line.endswith("...")], "a sentence is cut short"
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None) or parameter.name == "help", parameter.name
