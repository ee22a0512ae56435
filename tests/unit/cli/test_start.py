"""What a command reads before it runs: of the command groups, its own alone."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest

from xsc.cli.main import _COMMANDS, cli

GROUPS = {*_COMMANDS}


def test_the_list_of_commands_says_what_they_say():
    ctx = click.Context(cli)
    shown = {name: cli.get_command(ctx, name).get_short_help_str(sys.maxsize) for name in GROUPS}
    assert shown == _COMMANDS


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_a_group_says_of_each_command_a_whole_sentence(name):
    group = cli.get_command(click.Context(cli), name)
    text = group.get_help(click.Context(group, info_name=name)).partition("Commands:")[2]
    assert "..." not in text


@pytest.mark.parametrize(
    ("words", "read"),
    [(["--version"], set()), (["verify", "--help"], {"verify"}), (["--help"], set())],
)
def test_a_call_reads_the_groups_it_needs(words, read):
    script = (
        "import json, sys\n"
        "from xsc.cli.main import main\n"
        f"assert main({words!r}) == 0\n"
        "print(json.dumps([name for name in sys.modules if name.startswith('xsc.cli.')]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = {name.split(".")[2] for name in json.loads(run.stdout.splitlines()[-1])}
    assert loaded & GROUPS == read
