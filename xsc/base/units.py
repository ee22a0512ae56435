"""Sizes, durations, shares and credits as exact integers, and their text forms.

Money is micro-credits, shares are parts per million, times are milliseconds.
No function here uses a float: "1.5 GiB" is parsed digit by digit.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from xsc.base.errors import ArgumentInvalid
from xsc.base.limits import MFUEL, NEAR_LIMIT_PPM, PPM

BODY_OVERHEAD_BYTES = 512
"""What a stored shard or object record counts for beside its bytes. Header, keys and index entry
take 354 to 378 bytes of the disk for a shard, 430 to 540 for a record."""

MICRO = 1_000_000
_NUMBER = re.compile(r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*([A-Za-z%]*)\s*")
"""Thirty digits are more than any amount has; Python itself refuses 4 300."""
_SIZES = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
    "tib": 1024**4,
    "k": 1024,
    "m": 1024**2,
    "g": 1024**3,
    "t": 1024**4,
}
_DURATIONS_MS = {
    "ms": 1,
    "s": 1000,
    "": 1000,
    "m": 60_000,
    "min": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "days": 86_400_000,
}


def _times(number: str, unit: int) -> int | None:
    """Return a decimal number of units as a whole number; None where it is none."""
    whole, _, part = number.partition(".")
    value, rest = divmod(int(whole + part) * unit, 10 ** len(part))
    return None if rest else value


def _parse(text: str, units: dict[str, int], what: str, example: str) -> int:
    match = _NUMBER.fullmatch(text)
    if match is None or match[2].lower() not in units:
        raise ArgumentInvalid(f"'{text}' is no {what}", hint=f"write for example {example}")
    value = _times(match[1], units[match[2].lower()])
    if value is None:
        raise ArgumentInvalid(f"'{text}' is not a whole number of the smallest unit")
    return value


def parse_size(text: str) -> int:
    """Return the bytes of "64MiB", "1.5 GiB", "10GB" or "4096"; K, M, G are binary."""
    return _parse(text, _SIZES, "size", "64MiB or 10GB")


def parse_duration_ms(text: str) -> int:
    """Return the milliseconds of "250ms", "10s", "5m", "2h", "90d"; a bare number is seconds."""
    return _parse(text, _DURATIONS_MS, "duration", "250ms, 10s or 2h")


def parse_share_ppm(text: str) -> int:
    """Return the parts per million of "25%" or "0.25", 0 to 1 000 000.

    Raises:
        ArgumentInvalid: not a share, finer than one part per million, or above the whole.
    """
    match = _NUMBER.fullmatch(text)
    if match is None or match[2] not in ("", "%"):
        raise ArgumentInvalid(f"'{text}' is no share", hint="write for example 25%")
    value = _times(match[1], MICRO // 100 if match[2] else MICRO)
    if value is None or value > MICRO:
        raise ArgumentInvalid(
            f"'{text}' is not a share from 0% to 100% in steps of 0.0001%",
            hint="write for example 25%",
        )
    return value


def parse_credits(text: str) -> int:
    """Return the micro-credits of "10", "0.25" or "0.000001" credits."""
    match = _NUMBER.fullmatch(text)
    if match is None or match[2]:
        raise ArgumentInvalid(f"'{text}' is no amount of credits", hint="write for example 2.5")
    value = _times(match[1], MICRO)
    if value is None:
        raise ArgumentInvalid(f"'{text}' is finer than one micro-credit (0.000001)")
    return value


def format_size(size_bytes: int) -> str:
    """Return bytes for people, binary units, one decimal: "1.5 GiB"."""
    for unit, scale in (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size_bytes >= scale:
            tenths = size_bytes * 10 // scale
            return f"{tenths // 10}.{tenths % 10} {unit}"
    return f"{size_bytes} B"


def format_credits(micro: int) -> str:
    """Return micro-credits as credits with six decimals, sign kept: "-0.250000"."""
    sign = "-" if micro < 0 else ""
    return f"{sign}{abs(micro) // MICRO}.{abs(micro) % MICRO:06d}"


def say_credits(micro: int) -> str:
    """Return an amount in words: "1.2 credits", "1 credit"."""
    text = format_credits(micro).rstrip("0").rstrip(".")
    return f"{text} credit" if text == "1" else f"{text} credits"


def is_near(debt_micro: int, limit_micro: int) -> bool:
    """Return whether a debt is beyond NEAR_LIMIT_PPM of a limit."""
    return debt_micro > 0 and debt_micro * PPM > limit_micro * NEAR_LIMIT_PPM


def parse_month(text: str) -> tuple[int, int]:
    """Return the first moment of a month such as "2026-11", and that of the next, in UTC."""
    match = re.fullmatch(r"([0-9]{4})-(0[1-9]|1[0-2])", text, re.ASCII)
    if match is None or not "1970" <= match[1] < "9999":
        raise ArgumentInvalid(f"'{text[:16]}' is no month", hint="write for example 2026-11")
    year, month = int(match[1]), int(match[2])
    first = datetime(year, month, 1, tzinfo=UTC)
    after = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    return int(first.timestamp()) * 1000, int(after.timestamp()) * 1000


def format_share(ppm: int) -> str:
    """Return parts per million as a percentage with one decimal, rounded down."""
    return f"{ppm // 10_000}.{ppm % 10_000 // 1000}%"


def format_duration(duration_ms: int) -> str:
    """Return a duration for people in its two largest units: "2h 5m", "340ms"."""
    if duration_ms < 1000:
        return f"{duration_ms}ms"
    parts = []
    rest = duration_ms
    for unit, scale in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if rest >= scale:
            parts.append(f"{rest // scale}{unit}")
            rest %= scale
    return " ".join(parts[:2])


def held_bytes(size_bytes: int, bodies: int = 1) -> int:
    """Return what stored bodies count for at a host: their bytes, and what keeping each takes.

    Owner and host count room, leases and bills by it alike.
    """
    return size_bytes + bodies * BODY_OVERHEAD_BYTES


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up, for a >= 0 and b > 0."""
    return -(-a // b)


def format_level(kind: str, level: int) -> str:
    """Return the level of a slot or need: bytes, or Mfuel a second."""
    return f"{level // MFUEL} Mfuel/s" if kind == "compute" else format_size(level)


_NEVER_MS: Final = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp()) * 1_000


def format_time(at_ms: int) -> str:
    """Return a moment as "2026-11-22 21:30:00 UTC"; after the year 9999, which is "never"."""
    if at_ms >= _NEVER_MS:
        return "never"
    return f"{datetime.fromtimestamp(at_ms // 1000, tz=UTC):%Y-%m-%d %H:%M:%S} UTC"
