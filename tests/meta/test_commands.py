"""Every command line in the documents is one that `xsc` takes: command, options, arguments."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from xsc.base.errors import XscError
from xsc.base.limits import EPOCH_MS
from xsc.cli.main import cli
from xsc.cli.options import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def lines_of(text: str) -> list[str]:
    """Return the command lines of a page's blocks: after a prompt, where there is one."""
    found = []
    for language, block in BLOCK.findall(text):
        if language not in ("", "console", "sh"):
            continue
        rows = block.replace("\\\n", " ").splitlines()
        prompts = [row.removeprefix("$ ") for row in rows if row.startswith("$ ")]
        found += prompts or rows
    return found


def spans_of(text: str) -> list[str]:
    """Return the command lines that stand within a page's sentences."""
    found = re.findall(r"`(xsc [^`]+)`", BLOCK.sub("", text))
    return [" ".join(line.split()) for line in found if "…" not in line]


def calls_of(line: str) -> list[list[str]]:
    """Return the words of each call of xsc in a command line, without what the shell takes."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    calls: list[list[str]] = []
    words: list[str] | None = []
    for word in lexer:
        if set(word) <= set("|&;()"):
            words = []
        elif set(word) <= set("<>"):
            words = None
        elif words is not None:
            if not words and word in ("sudo", "exec", "time"):
                continue
            words.append(word)
            if len(words) == 1 and word.rpartition("/")[2] == "xsc":
                calls.append(words)
    return [call[1:] for call in calls]


def fault_of(words: list[str]) -> str | None:
    """Return what is wrong with a call of xsc; None where its commands and options exist."""
    command: click.Command = cli
    ctx = click.Context(command, info_name="xsc", obj=Settings())
    rest = list(words)
    while isinstance(command, click.Group):
        parser = command.make_parser(ctx)
        parser.allow_interspersed_args = False
        try:
            _, rest, _ = parser.parse_args(rest)
        except click.UsageError as wrong:
            return wrong.format_message()
        if not rest:
            return None
        found = command.get_command(ctx, rest[0])
        if found is None:
            return f"there is no command {rest[0]}"
        command, rest = found, rest[1:]
        ctx = click.Context(command, info_name=command.name, parent=ctx)
    try:
        given, left, _ = command.make_parser(ctx).parse_args(rest)
    except (click.UsageError, XscError) as wrong:
        return str(wrong)
    if "help" in given:
        return None
    needed = [str(param.name) for param in command.get_params(ctx) if param.required]
    missing = [name for name in needed if not isinstance(given.get(name), str | list | tuple)]
    return f"too much: {left}" if left else f"missing: {missing}" if missing else None


CALLS = [
    (path, words)
    for path in PAGES
    for line in lines_of(path.read_text())
    for words in calls_of(line)
]


NAMED = [
    (path, words)
    for path in PAGES
    for line in spans_of(path.read_text())
    for words in calls_of(line)
]


def faults_of(calls: list[tuple[Path, list[str]]]) -> dict[str, str]:
    """Return what is wrong with the calls of pages, by page and call."""
    found = {f"{path.name}: {' '.join(words)}": fault_of(words) for path, words in calls}
    return {call: fault for call, fault in found.items() if fault}


def test_every_command_that_a_sentence_names_exists():
    # Without what it works on, mostly.
    unfinished = ("missing:", "requires an argument")
    assert {
        call: fault
        for call, fault in faults_of(NAMED).items()
        if not any(part in fault for part in unfinished)
    } == {}


def test_pages_have_calls():
    assert len(CALLS) > 20
    assert len(NAMED) > 50


def test_every_call_in_a_page_is_one_that_xsc_takes():
    assert faults_of(CALLS) == {}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("xsc stor ls", "there is no command stor"),
        ("xsc store ls --nothing", "No such option"),
        ("xsc --nothing store ls", "No such option"),
        ("xsc store put", "missing: ['file']"),
        ("xsc store put a b", "too much: ['b']"),
    ],
)
def test_a_call_that_is_none_is_found(line, fault):
    (words,) = calls_of(line)
    assert (fault_of(words) or "").startswith(fault)


def test_calls_are_found_in_command_lines():
    assert calls_of(
        "curl x | xsc verify - > out && sudo -u you x; .venv/bin/xsc health  # all"
    ) == [
        ["verify", "-"],
        ["health"],
    ]


def test_files_that_the_readme_takes_from_a_checkout_are_there():
    made = {word for line in lines_of((ROOT / "README.md").read_text()) for word in line.split()}
    named = [word for word in made if word.startswith("fixtures/")]
    assert named
    for name in named:
        assert (ROOT / name).is_file(), name


def everything_shown() -> str:
    """Return the help of every command."""
    texts = []

    def walk(command: click.Command, ctx: click.Context) -> None:
        texts.append(command.get_help(ctx))
        if isinstance(command, click.Group):
            for name in command.list_commands(ctx):
                part = command.get_command(ctx, name)
                assert part is not None
                walk(part, click.Context(part, info_name=name, parent=ctx))

    walk(cli, click.Context(cli, info_name="xsc", obj=Settings()))
    return "\n".join(texts)


def test_people_read_hour_where_the_code_says_epoch():
    assert EPOCH_MS == 60 * 60 * 1000
    assert "epoch" not in everything_shown().lower()
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        if page.stem != "glossary":
            assert "epoch" not in page.read_text().lower(), page
