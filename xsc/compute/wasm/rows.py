"""Many calls of one function under one order: the tables that carry them, and their rules.

A batch is a job whose standard input is a table of arguments, one row a call,
and whose standard output is a table of what came of each. All of a column is
equally wide, so that row i starts at i times the width (docs/design/compute.md,
T1 to T6).

    argument row   the bits of each argument
    result row     trap (2 bytes), fuel (8 bytes), the bits of each result

Integers are little-endian, as the bits are. A trap is 0, or the place from 1 on
in the list of the batch's traps, in order of first appearance; what was trapped
has results of zero bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from xsc.base.encoding import Value, decode, encode, tagged_sha256
from xsc.base.errors import ArgumentInvalid, RecordInvalid, SignatureMismatch, TooLarge
from xsc.base.limits import BATCH_ITEMS_MAX, FUEL_MAX, KIB, MILLISECOND_FUEL, STDIN_BYTES_MAX
from xsc.base.merkle import root_of
from xsc.base.numerals import WIDTHS
from xsc.compute.wasm.signature import Signature
from xsc.compute.wasm.values import Bits, parse_arguments, parse_bits

BATCH_TRAPS_MAX = 256
BATCH_TRAPS_BYTES_MAX = 64 * KIB
"""Different traps that one batch can name."""

HEAD_BYTES = 10
OTHER_TRAP = "module_trapped: for one reason more than a batch can name"


@dataclass(frozen=True, slots=True)
class Shape:
    """What all calls of a batch have in common."""

    count: int
    fuel: int
    """Most fuel of one call; the order bounds all of them together."""

    def texts(self) -> tuple[str, str]:
        """Return the shape as the job's arguments, which the order's input hash covers."""
        return str(self.count), str(self.fuel)


@dataclass(frozen=True, slots=True)
class ResultRow:
    """What came of one call."""

    results: tuple[Bits, ...]
    trap: str | None
    fuel_used: int


def shape_of(texts: Sequence[str]) -> Shape:
    """Return the shape that a job's arguments stand for.

    Raises:
        ArgumentInvalid: they stand for none.
    """
    if len(texts) != 2 or not all(text.isascii() and text.isdigit() for text in texts):
        raise ArgumentInvalid("a batch is given its number of calls and the fuel of each")
    shape = Shape(*(int(text[:20]) for text in texts))
    if shape.texts() != tuple(texts):
        raise ArgumentInvalid("a number of the batch is not in its shortest form")
    if not (1 <= shape.count <= BATCH_ITEMS_MAX and 1 <= shape.fuel <= FUEL_MAX):
        raise ArgumentInvalid(
            f"a batch has from 1 to {BATCH_ITEMS_MAX} calls of at most {FUEL_MAX} fuel"
        )
    return shape


def calls_of(mode: str, texts: Sequence[str]) -> int:
    """Return how many calls a job bills: those of a batch, and 0 of another.

    Raises:
        ArgumentInvalid: its arguments stand for no batch.
    """
    return shape_of(texts).count if mode == "batch" else 0


def row_bytes(results: Sequence[str]) -> int:
    """Return the width of a result row."""
    return HEAD_BYTES + sum(WIDTHS[kind] for kind in results)


def check_size(count: int, signature: Signature, output_bytes: int) -> None:
    """Return if a batch of that many calls fits its tables, those of results the order's bound.

    Raises:
        ArgumentInvalid: none at all.
        TooLarge: too many calls, or too many bytes.
    """
    if count < 1:
        raise ArgumentInvalid("a batch has at least one call")
    if count > BATCH_ITEMS_MAX:
        raise TooLarge(
            f"a batch has at most {BATCH_ITEMS_MAX} calls, this one {count}",
            hint="give the others to a second batch",
        )
    given = count * sum(WIDTHS[kind] for kind in signature.params)
    taken = count * row_bytes(signature.results) + BATCH_TRAPS_BYTES_MAX
    if given > STDIN_BYTES_MAX or taken > output_bytes:
        raise TooLarge("the arguments or results of this batch are over their bound")


def read_lines(raw: bytes) -> list[list[str]]:
    """Return the arguments of each line; an empty line is a call without arguments.

    Raises:
        ArgumentInvalid: not text, or not a line.
        TooLarge: too many lines.
    """
    try:
        lines = raw.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise ArgumentInvalid("the lines of a batch hold something else than numbers") from None
    if not lines[-1]:
        lines.pop()
    if len(lines) > BATCH_ITEMS_MAX:
        raise TooLarge(
            f"a batch has at most {BATCH_ITEMS_MAX} lines, this one {len(lines)}",
            hint="give the others to a second batch",
        )
    return [line.split() for line in lines]


def table_of(calls: Sequence[Sequence[str]], function: str, signature: Signature) -> bytes:
    """Return the table of arguments, read by the function's signature.

    Raises:
        SignatureMismatch: the first call whose arguments do not fit.
    """
    parts: list[bytes] = []
    params = signature.params
    for index, texts in enumerate(calls, 1):
        row = [parse_bits(text, kind) for text, kind in zip(texts, params, strict=False)]
        if len(texts) != len(params) or None in row:
            try:
                parse_arguments(texts, function, signature)
            except SignatureMismatch as fault:
                raise SignatureMismatch(f"call {index} of the batch: {fault.message}") from None
        parts += [raw for raw in row if raw is not None]
    return b"".join(parts)


def split_arguments(table: bytes, count: int, params: Sequence[str]) -> Iterator[tuple[Bits, ...]]:
    """Yield the arguments of each call.

    Raises:
        SignatureMismatch: the table is not that long.
    """
    width = sum(WIDTHS[kind] for kind in params)
    if len(table) != count * width:
        raise SignatureMismatch("the table of arguments does not fit the function's signature")
    return (_split(table, index * width, params) for index in range(count))


def _split(table: bytes, start: int, kinds: Sequence[str]) -> tuple[Bits, ...]:
    found = []
    for kind in kinds:
        stop = start + WIDTHS[kind]
        found.append((kind, table[start:stop]))
        start = stop
    return tuple(found)


class ResultTable:
    """Writes the table of results."""

    def __init__(self, results: Sequence[str]) -> None:
        self._zeros = bytes(sum(WIDTHS[kind] for kind in results))
        self._parts: list[bytes] = []
        self._traps: dict[str, int] = {}
        self._traps_bytes = 0

    def add(self, row: ResultRow, *, times: int = 1) -> None:
        """Write a row, once or several times."""
        if not times:
            return
        body = b"".join(bits for _, bits in row.results)
        number = 0
        if row.trap is not None:
            body, number = self._zeros, self._number(row.trap)
        head = number.to_bytes(2, "little") + row.fuel_used.to_bytes(8, "little")
        self._parts.append((head + body) * times)

    def _number(self, trap: str) -> int:
        if trap not in self._traps:
            size = len(trap.encode()) + 8
            # The last place is kept for what finds none.
            room = self._traps_bytes + size + len(OTHER_TRAP) + 16 <= BATCH_TRAPS_BYTES_MAX
            if len(self._traps) >= BATCH_TRAPS_MAX - 1 or not room:
                trap = OTHER_TRAP
            else:
                self._traps_bytes += size
            self._traps.setdefault(trap, len(self._traps) + 1)
        return self._traps[trap]

    def tables(self) -> tuple[bytes, bytes]:
        """Return the table of results, and the list of traps."""
        return b"".join(self._parts), encode(list(self._traps))


def run_all(
    shape: Shape,
    signature: Signature,
    table: bytes,
    *,
    fuel: int,
    timeout_ms: int,
    elapsed_ms: Callable[[], int],
    call: Callable[[int, tuple[Bits, ...], int, int], tuple[ResultRow, int]],
) -> tuple[bytes, bytes, int, int]:
    """Make every call of a batch; one that traps does not stop the others.

    Once the fuel or the time of all is spent, those that are left are not made:
    they end by that limit and cost nothing.

    Args:
        shape: how many calls, and the fuel of each.
        signature: of the function.
        table: of the arguments.
        fuel: of all calls together.
        timeout_ms: of all calls together.
        elapsed_ms: the time since the first call began.
        call: makes one, given its place, arguments, fuel and time; gives memory, too.

    Returns:
        The table of results, the list of traps, the fuel of all, the largest memory.
    """
    rows, spent, peak = ResultTable(signature.results), 0, 0
    for index, arguments in enumerate(split_arguments(table, shape.count, signature.params)):
        allowed = min(shape.fuel, fuel - spent)
        left_ms = timeout_ms - elapsed_ms()
        if not allowed:
            rows.add(ResultRow((), "fuel_exhausted", 0), times=shape.count - index)
            break
        if left_ms > 0:
            row, memory = call(index, arguments, allowed, left_ms)
            peak = max(peak, memory)
        if left_ms <= 0 or row.trap == "time_exceeded":
            # The first is billed, like a run that was ended for its time.
            row = ResultRow((), "time_exceeded", late_fuel(allowed, timeout_ms))
            rows.add(row)
            rows.add(ResultRow((), "time_exceeded", 0), times=shape.count - index - 1)
            spent += row.fuel_used
            break
        spent += row.fuel_used
        rows.add(row)
    return *rows.tables(), spent, peak


def late_fuel(allowed: int, timeout_ms: int) -> int:
    """Return what the call is billed during which the time of all was over."""
    return min(allowed, timeout_ms * MILLISECOND_FUEL)


def seed_at(seed: bytes, index: int) -> bytes:
    """Return what the random bytes of one call follow from."""
    return tagged_sha256("batch-seed", seed, index.to_bytes(8, "big"))


def batch_output(table: bytes, traps: bytes) -> bytes:
    """Return what a receipt names: it binds the root over the rows, and the traps."""
    value: dict[str, Value] = {"rows": root_of(table), "traps": hashlib.sha256(traps).digest()}
    return tagged_sha256("compute-batch-output", encode(value))


def read_traps(raw: bytes, known: Callable[[str], bool]) -> list[str]:
    """Return the list of a batch's traps.

    Raises:
        RecordInvalid: it is none, or names a trap that is not known.
    """
    try:
        value = decode(raw, size_max=BATCH_TRAPS_BYTES_MAX)
    except TooLarge:
        raise RecordInvalid("the list of a batch's traps is over its bound") from None
    if not isinstance(value, list) or len(value) > BATCH_TRAPS_MAX:
        raise RecordInvalid("the list of a batch's traps is none")
    traps = []
    for item in value:
        if not isinstance(item, str) or item in traps or not known(item):
            raise RecordInvalid("a batch names a trap that does not exist, or one twice")
        traps.append(item)
    return traps


def read_rows(
    shape: Shape,
    results: Sequence[str],
    table: bytes,
    traps_raw: bytes,
    *,
    fuel: int,
    timeout_ms: int,
    is_trap: Callable[[str], bool],
) -> tuple[list[ResultRow], int]:
    """Return what came of each call, and the fuel of all, held against every rule.

    Raises:
        RecordInvalid: the first rule that is broken.
    """
    traps = read_traps(traps_raw, is_trap)
    width = row_bytes(results)
    if len(table) != shape.count * width:
        raise RecordInvalid("the table of results has not a row for each call")
    rows: list[ResultRow] = []
    spent, met, late = 0, 0, False
    for start in range(0, len(table), width):
        number = int.from_bytes(table[start : start + 2], "little")
        used = int.from_bytes(table[start + 2 : start + HEAD_BYTES], "little")
        allowed = min(shape.fuel, fuel - spent)
        if used > allowed:
            raise RecordInvalid("a call bills more fuel than it was allowed")
        if number > len(traps) or number > met + 1:
            raise RecordInvalid("a call names a trap that the batch does not")
        met = max(met, number)
        trap = traps[number - 1] if number else None
        due = 0 if late else late_fuel(allowed, timeout_ms)
        if (late and trap != "time_exceeded") or (trap == "time_exceeded" and used != due):
            raise RecordInvalid("a call that was ended for its time bills another fuel")
        late = late or trap == "time_exceeded"
        if trap is not None and any(table[start + HEAD_BYTES : start + width]):
            raise RecordInvalid("a call has results although it was trapped")
        given = () if trap is not None else _split(table, start + HEAD_BYTES, results)
        rows.append(ResultRow(given, trap, used))
        spent += used
    if met != len(traps):
        raise RecordInvalid("the batch names a trap that no call met")
    return rows, spent
