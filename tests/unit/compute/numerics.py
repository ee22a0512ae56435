"""What each numeric instruction gives, from the specification's text, in exact arithmetic.

Nothing here uses the processor's floats: a float is its bits, its value a
`Fraction`, and every result is rounded once, to nearest, ties to even. NaNs that
an instruction makes are canonical and positive, which is this engine's
configuration and allowed by the specification.

Source: WebAssembly core specification 2.0, section 4.3 (numerics).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

ZERO_DIVISION = "integer division by zero"
OVERFLOW = "integer overflow"
NO_INTEGER = "bad conversion to integer"

INTEGERS = {"i32": 32, "i64": 64}
FLOATS = {"f32": (23, 8), "f64": (52, 11)}
WIDTHS = {"i32": 32, "i64": 64, "f32": 32, "f64": 64}


class Trapped(Exception):
    pass


# Integers


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> bits - 1 else value


def div_s(a: int, b: int, n: int) -> int:
    if b == 0:
        raise Trapped(ZERO_DIVISION)
    quotient = abs(signed(a, n)) // abs(signed(b, n))
    if (signed(a, n) < 0) != (signed(b, n) < 0):
        quotient = -quotient
    if quotient == 1 << n - 1:
        raise Trapped(OVERFLOW)
    return quotient


def rem_s(a: int, b: int, n: int) -> int:
    if b == 0:
        raise Trapped(ZERO_DIVISION)
    rest = abs(signed(a, n)) % abs(signed(b, n))
    return -rest if signed(a, n) < 0 else rest


def div_u(a: int, b: int, _n: int) -> int:
    if b == 0:
        raise Trapped(ZERO_DIVISION)
    return a // b


def rem_u(a: int, b: int, _n: int) -> int:
    if b == 0:
        raise Trapped(ZERO_DIVISION)
    return a % b


def rotl(a: int, b: int, n: int) -> int:
    return a << b % n | a >> n - b % n


def clz(a: int, n: int) -> int:
    return f"{a:0{n}b}".find("1") if a else n


def ctz(a: int, n: int) -> int:
    return f"{a:0{n}b}"[::-1].find("1") if a else n


BINARY: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda a, b, n: a + b,
    "sub": lambda a, b, n: a - b,
    "mul": lambda a, b, n: a * b,
    "div_s": div_s,
    "div_u": div_u,
    "rem_s": rem_s,
    "rem_u": rem_u,
    "and": lambda a, b, n: a & b,
    "or": lambda a, b, n: a | b,
    "xor": lambda a, b, n: a ^ b,
    "shl": lambda a, b, n: a << b % n,
    "shr_u": lambda a, b, n: a >> b % n,
    "shr_s": lambda a, b, n: signed(a, n) >> b % n,
    "rotl": rotl,
    "rotr": lambda a, b, n: rotl(a, -b % n, n),
}
UNARY: dict[str, Callable[[int, int], int]] = {
    "clz": clz,
    "ctz": ctz,
    "popcnt": lambda a, n: f"{a:b}".count("1"),
    "extend8_s": lambda a, n: signed(a % 2**8, 8),
    "extend16_s": lambda a, n: signed(a % 2**16, 16),
}
TESTS: dict[str, Callable[[int, int, int], bool]] = {
    "eq": lambda a, b, n: a == b,
    "ne": lambda a, b, n: a != b,
    "lt_s": lambda a, b, n: signed(a, n) < signed(b, n),
    "lt_u": lambda a, b, n: a < b,
    "gt_s": lambda a, b, n: signed(a, n) > signed(b, n),
    "gt_u": lambda a, b, n: a > b,
    "le_s": lambda a, b, n: signed(a, n) <= signed(b, n),
    "le_u": lambda a, b, n: a <= b,
    "ge_s": lambda a, b, n: signed(a, n) >= signed(b, n),
    "ge_u": lambda a, b, n: a >= b,
}


# Floats: a sign and a magnitude, which is a Fraction, INFINITY or NAN

INFINITY = "infinity"
NAN = "nan"
Float = tuple[int, "Fraction | str"]


def take(bits: int, kind: str) -> Float:
    fraction, exponent = FLOATS[kind]
    sign, field = bits >> fraction + exponent, bits >> fraction & (1 << exponent) - 1
    rest, bias = bits & (1 << fraction) - 1, (1 << exponent - 1) - 1
    if field == (1 << exponent) - 1:
        return sign, NAN if rest else INFINITY
    if field:
        return sign, (rest + (1 << fraction)) * Fraction(2) ** (field - bias - fraction)
    return sign, rest * Fraction(2) ** (1 - bias - fraction)


def give(value: Float, kind: str) -> int:
    """Round to nearest, ties to even."""
    fraction, exponent = FLOATS[kind]
    sign, magnitude = value[0] << fraction + exponent, value[1]
    ones = (1 << exponent) - 1
    if magnitude == NAN:
        return ones << fraction | 1 << fraction - 1
    if magnitude == INFINITY:
        return sign | ones << fraction
    assert isinstance(magnitude, Fraction)
    bias = (1 << exponent - 1) - 1
    scale = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    scale = max(1 - bias, scale - int(magnitude < Fraction(2) ** scale))
    units = magnitude / Fraction(2) ** (scale - fraction)
    whole, rest = divmod(units.numerator, units.denominator)
    twice = 2 * rest - units.denominator
    if twice > 0 or (twice == 0 and whole % 2):
        whole += 1
    if whole >= 1 << fraction + 1:
        whole, scale = whole // 2, scale + 1
    if scale > bias:
        return sign | ones << fraction
    if whole < 1 << fraction:  # subnormal, or zero
        return sign | whole
    return sign | scale + bias << fraction | whole - (1 << fraction)


def number(value: Float) -> Fraction:
    sign, magnitude = value
    assert isinstance(magnitude, Fraction)
    return -magnitude if sign else magnitude


def of(value: Fraction, zero_sign: int) -> Float:
    return (int(value < 0) if value else zero_sign), abs(value)


def f_add(a: Float, b: Float) -> Float:
    if NAN in (a[1], b[1]):
        return 0, NAN
    if a[1] == INFINITY:
        return (0, NAN) if b == (1 - a[0], INFINITY) else a
    if b[1] == INFINITY:
        return b
    return of(number(a) + number(b), a[0] & b[0])


def f_sub(a: Float, b: Float) -> Float:
    return f_add(a, (1 - b[0], b[1]))


def f_mul(a: Float, b: Float) -> Float:
    sign = a[0] ^ b[0]
    if NAN in (a[1], b[1]) or {a[1], b[1]} == {Fraction(0), INFINITY}:
        return 0, NAN
    if INFINITY in (a[1], b[1]):
        return sign, INFINITY
    return sign, abs(number(a) * number(b))


def f_div(a: Float, b: Float) -> Float:
    sign = a[0] ^ b[0]
    if NAN in (a[1], b[1]) or (a[1] == b[1] and a[1] in (0, INFINITY)):
        return 0, NAN
    if a[1] == INFINITY or b[1] == 0:
        return sign, INFINITY
    if b[1] == INFINITY:
        return sign, Fraction(0)
    return sign, abs(number(a) / number(b))


def less(a: Float, b: Float) -> bool:
    """Say whether a < b; neither is a NaN; zeros are equal."""

    def key(value: Float) -> tuple[int, Fraction]:
        if value[1] == INFINITY:
            return (-1 if value[0] else 1), Fraction(0)
        return 0, number(value)

    return key(a) < key(b)


def f_min(a: Float, b: Float) -> Float:
    if NAN in (a[1], b[1]):
        return 0, NAN
    if a[1] == b[1] == 0:
        return a[0] | b[0], Fraction(0)
    return a if less(a, b) else b


def f_max(a: Float, b: Float) -> Float:
    if NAN in (a[1], b[1]):
        return 0, NAN
    if a[1] == b[1] == 0:
        return a[0] & b[0], Fraction(0)
    return b if less(a, b) else a


def f_sqrt(a: Float) -> Float:
    if a[1] == 0 or a == (0, INFINITY):
        return a
    if a[0] or a[1] == NAN:
        return 0, NAN
    value = number(a)
    # Enough digits of the root to round it; the last stands for all that were left out.
    shift = 600
    scaled = value * 4**shift
    root = math.isqrt(scaled.numerator // scaled.denominator)
    inexact = int(Fraction(root * root) != scaled)
    return 0, Fraction(2 * root + inexact, 2 ** (shift + 1))


def rounded(how: Callable[[Fraction], int]) -> Callable[[Float], Float]:
    def apply(a: Float) -> Float:
        if a[1] == NAN:
            return 0, NAN
        if a[1] == INFINITY:
            return a
        return of(Fraction(how(number(a))), a[0])

    return apply


F_BINARY = {
    "add": f_add,
    "sub": f_sub,
    "mul": f_mul,
    "div": f_div,
    "min": f_min,
    "max": f_max,
}
F_UNARY = {
    "sqrt": f_sqrt,
    "ceil": rounded(math.ceil),
    "floor": rounded(math.floor),
    "trunc": rounded(math.trunc),
    "nearest": rounded(round),  # of a Fraction: ties to even
}
F_TESTS: dict[str, Callable[[Float, Float], bool]] = {
    "eq": lambda a, b: not less(a, b) and not less(b, a),
    "lt": less,
    "gt": lambda a, b: less(b, a),
    "le": lambda a, b: not less(b, a),
    "ge": lambda a, b: not less(a, b),
}


def truncated(value: Float, bits: int, *, sign: bool, saturate: bool) -> int:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if sign else (0, (1 << bits) - 1)
    if value[1] == NAN:
        if saturate:
            return 0
        raise Trapped(NO_INTEGER)
    if value[1] == INFINITY:
        whole = low - 1 if value[0] else high + 1
    else:
        whole = math.trunc(number(value))
    if low <= whole <= high:
        return whole
    if saturate:
        return min(max(whole, low), high)
    raise Trapped(OVERFLOW)


Model = Callable[..., int]
"""From the bits of the arguments to the bits of the result; raises Trapped."""


def _instructions() -> dict[str, tuple[tuple[str, ...], str, Model]]:
    made: dict[str, tuple[tuple[str, ...], str, Model]] = {}
    for kind, n in INTEGERS.items():
        for name, binary in BINARY.items():
            made[f"{kind}.{name}"] = (kind, kind), kind, lambda a, b, f=binary, n=n: f(a, b, n)
        for name, unary in UNARY.items():
            made[f"{kind}.{name}"] = (kind,), kind, lambda a, f=unary, n=n: f(a, n)
        for name, test in TESTS.items():
            made[f"{kind}.{name}"] = (kind, kind), "i32", lambda a, b, f=test, n=n: f(a, b, n)
        made[f"{kind}.eqz"] = (kind,), "i32", lambda a: a == 0
        for source in FLOATS:
            for sign in (True, False):
                for saturate in (True, False):
                    made[f"{kind}.trunc{'_sat' * saturate}_{source}_{'s' if sign else 'u'}"] = (
                        (source,),
                        kind,
                        lambda a, s=source, n=n, g=sign, t=saturate: truncated(
                            take(a, s), n, sign=g, saturate=t
                        ),
                    )
    made["i64.extend32_s"] = ("i64",), "i64", lambda a: signed(a % 2**32, 32)
    made["i64.extend_i32_s"] = ("i32",), "i64", lambda a: signed(a, 32)
    made["i64.extend_i32_u"] = ("i32",), "i64", lambda a: a
    made["i32.wrap_i64"] = ("i64",), "i32", lambda a: a
    for kind, (fraction, exponent) in FLOATS.items():
        top = 1 << fraction + exponent
        for name, f_binary in F_BINARY.items():
            made[f"{kind}.{name}"] = (
                (kind, kind),
                kind,
                lambda a, b, f=f_binary, k=kind: give(f(take(a, k), take(b, k)), k),
            )
        for name, f_unary in F_UNARY.items():
            made[f"{kind}.{name}"] = (
                (kind,),
                kind,
                lambda a, f=f_unary, k=kind: give(f(take(a, k)), k),
            )

        def compare(a: int, b: int, f: Callable[[Float, Float], bool], k: str) -> int:
            x, y = take(a, k), take(b, k)
            return NAN not in (x[1], y[1]) and f(x, y)

        for name, f_test in F_TESTS.items():
            made[f"{kind}.{name}"] = (
                (kind, kind),
                "i32",
                lambda a, b, f=f_test, k=kind, c=compare: c(a, b, f, k),
            )
        made[f"{kind}.ne"] = (
            (kind, kind),
            "i32",
            lambda a, b, k=kind, c=compare: not c(a, b, F_TESTS["eq"], k),
        )
        # These look at the sign alone, and keep what a NaN carries.
        made[f"{kind}.abs"] = (kind,), kind, lambda a, t=top: a & ~t
        made[f"{kind}.neg"] = (kind,), kind, lambda a, t=top: a ^ t
        made[f"{kind}.copysign"] = (kind, kind), kind, lambda a, b, t=top: a & ~t | b & t
        for source, n in INTEGERS.items():
            made[f"{kind}.convert_{source}_s"] = (
                (source,),
                kind,
                lambda a, n=n, k=kind: give(of(Fraction(signed(a, n)), 0), k),
            )
            made[f"{kind}.convert_{source}_u"] = (
                (source,),
                kind,
                lambda a, k=kind: give(of(Fraction(a), 0), k),
            )
    made["f32.demote_f64"] = ("f64",), "f32", lambda a: give(take(a, "f64"), "f32")
    made["f64.promote_f32"] = ("f32",), "f64", lambda a: give(take(a, "f32"), "f64")
    for one, other in (("i32", "f32"), ("i64", "f64")):
        made[f"{one}.reinterpret_{other}"] = (other,), one, lambda a: a
        made[f"{other}.reinterpret_{one}"] = (one,), other, lambda a: a
    return made


INSTRUCTIONS = _instructions()
"""Name: the types of the operands, the type of the result, and the model."""


def _integer_edges(n: int) -> list[int]:
    top = 1 << n - 1
    return [0, 1, 2, 7, n - 1, n, 0x5A, 0x80, 0x8000, top - 1, top, top + 1, 2**n - 2, 2**n - 1]


def _float_edges(kind: str) -> list[int]:
    fraction, exponent = FLOATS[kind]
    bias, one = (1 << exponent - 1) - 1, 1 << fraction
    ones = ((1 << exponent) - 1) * one

    def power(of_two: int) -> int:
        return (of_two + bias) * one

    positive = [
        0,
        1,  # the smallest subnormal
        one - 1,
        one,  # the smallest normal
        one + 1,
        power(-1) - 1,
        power(-1),
        power(-1) + 1,
        power(0),
        power(0) + 1,
        power(0) + one // 2,  # 1.5
        power(1) + one // 4,  # 2.5: ties to even
        power(31) - 1,
        power(31),
        power(32) - 1,
        power(32),
        power(63),
        power(64) - 1,
        power(64),
        power(fraction) + 1,
        ones - 1,  # the largest
        ones,
        ones + one // 2,  # the canonical NaN
        ones + 1,  # a signalling one
        ones + one // 2 + 5,
    ]
    if kind == "f64":
        # Where f32 rounds: a tie below and above, its largest, half its smallest.
        positive += [
            power(0) + (1 << 28),
            power(0) + (3 << 28),
            power(127) + one - (1 << 28),
            power(127) + one - (1 << 28) - 1,
            power(-150),
            power(-150) + 1,
            power(31) - (1 << 21),
            power(31) - (1 << 22),
        ]
    top = 1 << fraction + exponent
    return [bits | sign for bits in positive for sign in (0, top)]


EDGES = {
    "i32": _integer_edges(32),
    "i64": [*_integer_edges(64), 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**24 + 1, 2**63 + 2**39 + 1],
    "f32": _float_edges("f32"),
    "f64": _float_edges("f64"),
}
_APART = {
    kind: [
        0,
        1,
        one,
        bias * one - 1,
        bias * one,
        bias * one + 1,
        (bias + 1) * one + one // 4,
        (bias + fraction) * one + 1,
        2 * bias * one + one - 1,
        (2 * bias + 1) * one,
        (2 * bias + 1) * one + 1,
    ]
    for kind, (fraction, exponent) in FLOATS.items()
    for one, bias in [(1 << fraction, (1 << exponent - 1) - 1)]
}
PAIRED = EDGES | {
    kind: [bits | sign for bits in _APART[kind] for sign in (0, 1 << WIDTHS[kind] - 1)]
    for kind in FLOATS
}
"""Of each type, those that are paired with one another."""
