"""Checks some calls of a batch by running them again, and not all of them.

The results of all calls are at hand, as `xsc compute invoke --batch` prints them.
Their table must be the one whose Merkle root the receipt binds, so that each row is
the provider's signed word; then a row is right or wrong by itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from xsc.base.errors import ArgumentInvalid
from xsc.compute import batch
from xsc.compute.batch import Row, Rows, Shape
from xsc.compute.receipts import TIME_TRAPS
from xsc.compute.replay import AGREES, Judgement, shown_bits
from xsc.compute.sandbox import Job, JobResult, trap_text
from xsc.compute.signature import Signature
from xsc.compute.values import parse_bits


def read_results(raw: bytes, results: Sequence[str]) -> list[Row]:
    """Return what came of each call, from lines of JSON.

    Raises:
        ArgumentInvalid: a line is something else.
    """
    rows = []
    for number, line in enumerate(raw.splitlines(), 1):
        try:
            item = json.loads(line)
            trap, texts = item["trap"], item["results"]
            bits = [
                parse_bits(text, kind) for text, kind in zip(texts, results, strict=trap is None)
            ]
            if None in bits or type(item["fuel_used"]) is not int or item["fuel_used"] < 0:
                raise ValueError
            given = tuple((kind, each) for kind, each in zip(results, bits, strict=False) if each)
            told = None if trap is None else trap_text(trap["code"], trap["detail"])
            rows.append(Row(given, told, item["fuel_used"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ArgumentInvalid(
                f"line {number} of the results is none that `xsc compute invoke --batch` prints"
            ) from None
    return rows


def output_of(rows: Sequence[Row], results: Sequence[str]) -> bytes:
    """Return the hash by which a receipt names the table of those rows."""
    made = Rows(results)
    for row in rows:
        made.add(row)
    return batch.batch_output(*made.tables())


NOT_MADE = Row((), "fuel_exhausted", 0)
"""What stands for a call that the fuel of all was spent before."""


def call_job(
    whole: Job, shape: Shape, signature: Signature, rows: Sequence[Row], index: int
) -> Job | None:
    """Return the job that makes one call of a batch again; None where it was never made."""
    left = whole.limits.fuel - sum(row.fuel_used for row in rows[:index])
    if left <= 0:
        return None
    width = len(whole.stdin) // shape.count
    table = whole.stdin[index * width : (index + 1) * width]
    (arguments,) = batch.split_arguments(table, 1, signature.params)
    return replace(
        whole,
        mode="invoke",
        arguments=arguments,
        args=(),
        stdin=b"",
        limits=replace(whole.limits, fuel=min(shape.fuel, left)),
        seed=batch.seed_at(whole.seed, index),
    )


def judge_call(told: Row, again: JobResult | None) -> Judgement:
    """Hold one row against what a second run of its call gave, None where it was never made."""
    if told.trap in TIME_TRAPS or (again is not None and again.trap in TIME_TRAPS):
        return Judgement("cannot_tell", ("it was ended for its time",))
    found = NOT_MADE if again is None else Row(again.results, again.trap, again.fuel_used)
    if found == told:
        return AGREES
    shown = [
        f"{shown_bits(row.results) or row.trap or 'nothing'} for {row.fuel_used} fuel"
        for row in (told, found)
    ]
    return Judgement("differs", (f"the receipt binds {shown[0]}, the second run gave {shown[1]}",))
