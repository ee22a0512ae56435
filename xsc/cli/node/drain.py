"""xsc node drain: leave the network without anybody losing anything."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from xsc import api
from xsc.base.errors import EXIT_PARTLY
from xsc.base.units import format_credits, format_size
from xsc.cli.options import PATH, Command, Settings
from xsc.cli.output import count_of, progress_bar, say, short, show, show_pairs, warn
from xsc.client.calls import Calls
from xsc.client.core import Document
from xsc.client.files import check_target, write_whole

DRAIN_WAIT_MS = 5_000
"""How long the node may wait for its next count before it answers."""


@click.command(cls=Command)
@click.option("--status", "what", flag_value="status", help="Say how far it is, and no more.")
@click.option("--cancel", "what", flag_value="cancel", help="Stay after all.")
@click.option("--proof", type=PATH, help="Where the proof goes.  [drain.proof in the home]")
def drain(settings: Settings, what: str | None, proof: Path | None) -> int:
    """Move all that the node holds for others to other nodes, so that it can leave.

    Owners move what is theirs and then order its deletion here; reads go on
    meanwhile, and nothing new is taken. The node goes on with it by itself, also
    after a restart. Writes the owners' signed orders as a proof for `xsc verify`.
    Exits with 7 if something cannot be moved.
    """
    calls = settings.calls()
    target = proof if proof is not None else settings.home / "drain.proof"
    if what == "cancel":
        settings.view(calls.ask(api.home.STAY), "the node stays; what has moved stays where it is")
        return 0
    if proof is not None:
        check_target(proof)
    answer = calls.ask(api.home.DRAIN) if what == "status" else _drained(calls)
    if answer["state"] != "staying" and (what is None or proof is not None):
        with calls.download(api.home.PROOF) as download:
            write_whole(target, download.blocks())
    settings.view(answer, _show_drain)
    if answer["state"] == "staying":
        return 0
    for line in _drain_warnings(answer):
        warn(line)
    if answer["state"] != "done":
        return EXIT_PARTLY
    if what is None:
        say(f"the proof is {target}; `xsc verify` checks it. The node can be stopped for good:")
        say("its own objects stay readable by capability, and by its identity (xsc node recover)")
    return 0


def _drained(calls: Calls) -> Document:
    """Begin to leave and wait until all has moved that can; return how it stands then."""
    answer = calls.ask(api.home.LEAVE)
    with progress_bar("moving away", answer["total_bytes"]) as progress:
        shown, said = 0, ""
        waiting: set[str] = set()
        while answer["state"] == "leaving":
            moved = answer["total_bytes"] - answer["left_bytes"]
            progress(moved - shown)
            shown = moved
            left = _so_much(answer, "left")
            if left != said and not sys.stderr.isatty():
                say(f"left: {left}")
            said = left
            stuck = answer["stuck_objects"] + len(answer["directories_only_here"])
            if stuck and stuck >= answer["left_objects"]:
                break
            for row in answer["stuck"]:
                if row["object"] not in waiting:
                    waiting.add(row["object"])
                    say(_stays(row))
            answer = calls.ask(api.home.DRAIN, api.home.Look(wait_ms=DRAIN_WAIT_MS))
    return answer


def _show_drain(answer: Document) -> None:
    if answer["state"] == "staying":
        show("the node is not leaving")
        return
    show_pairs(
        [
            ("state", answer["state"]),
            ("peers told", f"{answer['peers_told']} of {answer['peers']}"),
            ("released", _so_much(answer, "released")),
            ("left", _so_much(answer, "left")),
            ("owed to it", f"{format_credits(answer['owed_micro'])} credits"),
        ]
    )


def _so_much(answer: Document, which: str) -> str:
    objects = count_of(answer[f"{which}_objects"], "object")
    return f"{objects}, {format_size(answer[f'{which}_bytes'])}"


def _stays(row: Document) -> str:
    size = format_size(row["size_bytes"])
    return f"object {row['object'][:16]} of {short(row['owner'])}, {size}, stays: {row['reason']}"


def _drain_warnings(answer: Document) -> list[str]:
    lines = [_stays(row) for row in answer["stuck"]]
    more = answer["stuck_objects"] - len(answer["stuck"])
    if more > 0:
        lines.append(f"beside them: {count_of(more, 'object')}")
    lines += [
        f"the directory of {short(owner)} lies at no other peer"
        for owner in answer["directories_only_here"]
    ]
    if answer["guarded_at_own_cost"]:
        lines.append(
            f"this node pays for shards of {count_of(answer['guarded_at_own_cost'], 'object')} of "
            "owners that are away; they stay where they are until its leases end"
        )
    return lines
