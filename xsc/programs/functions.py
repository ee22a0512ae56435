"""Functions that computations call: their types, and those that every node has.

A function is pure and gives one value. `T` in a signature stands for one type, the same at
every place. The hash of a function is that of its name, version and types: who changes what a
function does, raises its version (docs/design/programs.md, F1 to F5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from xsc.base.encoding import Value as Encodable
from xsc.base.encoding import encode, tagged_sha256
from xsc.base.errors import ArgumentInvalid, ProgramInvalid
from xsc.programs import limits, numbers
from xsc.programs.numbers import FLOATS, NUMBERS, SCALARS, TYPES, Value, same

_VARIABLES: Final = {"T": SCALARS, "N": NUMBERS, "V": TYPES}
"""What a type variable may stand for."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function with named parameters. A single parameter `*` takes any number of inputs.

    `run` is called with the type that the type variable stands for ("" without one), then
    with the values in the order of the parameters.
    """

    name: str
    version: int
    params: Mapping[str, str]
    result: str
    run: Callable[..., Value]
    merges: bool = False
    """Whether it merges what the sources of a cell say, and leaves out those that say nothing."""

    @property
    def hash(self) -> bytes:
        """What the function is known by in provenance, 32 bytes."""
        params: list[Encodable] = [[name, type_] for name, type_ in self.params.items()]
        return tagged_sha256(
            "program_function", encode([self.name, self.version, params, self.result])
        )

    def show(self) -> str:
        """Return the signature for people: `math.add(x: N, y: N) -> N`."""
        listed = ", ".join(f"{name}: {type_}" for name, type_ in self.params.items())
        return f"{self.name}({listed}) -> {self.result}"

    def order(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the names of given inputs in the order in which `run` takes them.

        Raises:
            ProgramInvalid: not the parameters of the function.
        """
        given = sorted(names)
        if "*" in self.params:
            return tuple(given)
        if given != sorted(self.params):
            raise ProgramInvalid(f"{self.show()} is given {', '.join(given) or 'nothing'}")
        return tuple(self.params)

    def bind(self, types: Mapping[str, str]) -> tuple[str, str]:
        """Return what the type variable stands for, and the type of the result.

        Raises:
            ProgramInvalid: the types of the inputs do not fit.
        """
        bound = ""
        for name in self.order(types):
            wanted, given = self.params.get(name) or self.params["*"], types[name]
            variable = wanted.strip("[]")
            if variable in _VARIABLES:
                inner = given if variable == "V" else given.strip("[]")
                fits = wanted.replace(variable, inner) == given and inner in _VARIABLES[variable]
                fits = fits and bound in {"", inner}
                bound = inner
            else:
                fits = wanted == given
            if not fits:
                raise ProgramInvalid(f"{self.show()} is given a {given} as '{name}'")
        result = self.result.strip("[]")
        return bound, self.result.replace(result, bound) if result in _VARIABLES else self.result


def _fit(type_: str, value: float) -> Value:
    """Return what an operation gives in its own type: an f32 operation rounds its result."""
    return numbers.to_f32(value) if type_ == "f32" else value


def _divide(type_: str, x: Any, y: Any) -> Value:  # noqa: ANN401
    if type_ in FLOATS:
        if y == 0:
            # As IEEE 754 says; Python raises.
            if x == 0 or math.isnan(x):
                return math.nan
            return math.copysign(math.inf, x) * math.copysign(1, y)
        return _fit(type_, x / y)
    if y == 0:
        raise ArgumentInvalid("an integer is divided by zero")
    quotient: int = abs(x) // abs(y)
    return quotient if (x < 0) == (y < 0) else -quotient


def _sum(type_: str, items: Any) -> Value:  # noqa: ANN401
    total: Any = 0.0 if type_ in FLOATS else 0
    for item in items:
        total = _fit(type_, total + item)
    return total  # type: ignore[no-any-return]


def _join(items: tuple[str, ...], between: str) -> str:
    if sum(map(len, items)) + len(between) * len(items) > 2 * limits.VALUE_BYTES_MAX:
        raise ArgumentInvalid(f"the text is over the bound of {limits.VALUE_BYTES_MAX} bytes")
    return between.join(items)


def check_said(merge: str, type_: str, value: Any, sources: int) -> None:  # noqa: ANN401
    """Refuse what a merge rule can take nothing of, where one of its sources says it.

    What all say together must fit the type, so a source has its share of the bounds: what fits
    if each of them says as much.

    Raises:
        ArgumentInvalid: why it counts for nothing.
    """
    if merge == "interval" and not (len(value) == 2 and value[0] <= value[1]):
        raise ArgumentInvalid("an interval is a list of its least and its greatest number")
    if merge in {"min", "max"} and value != value:  # noqa: PLR0124 (NaN)
        raise ArgumentInvalid("NaN is neither less nor greater than a number")
    if merge in {"counter", "union"}:
        share = f"the share of one of {sources} sources"
        try:
            together: Any = numbers.check_value(type_, _fit(type_, value * sources))
        except ArgumentInvalid as fault:
            raise ArgumentInvalid(f"it is over {share}: {fault.message}") from None
        if type_ in FLOATS and not math.isfinite(together):
            raise ArgumentInvalid(f"it is no finite number, or over {share}")


def _signed(number: float) -> tuple[float, float]:
    """Return what orders numbers so that no two of other bits are equal: −0 is before +0."""
    return number, math.copysign(1, number)


def _count(type_: str, *said: Any) -> Value:  # noqa: ANN401
    # Rounded once: a sum that rounds after each item depends on their order.
    return _fit(type_, math.fsum(said)) if type_ in FLOATS else sum(said)


def _union(type_: str, *said: Any) -> Value:  # noqa: ANN401
    items = [item for each in said for item in each]
    keys = [numbers.to_bits(type_, item) for item in items] if type_ in FLOATS else items
    members = dict(zip(keys, items, strict=True))
    return tuple(members[key] for key in sorted(members))


def _meet(_: str, *said: Any) -> Value:  # noqa: ANN401
    lows, highs = zip(*said, strict=True)
    low, high = max(lows, key=_signed), min(highs, key=_signed)
    if low > high:
        raise ArgumentInvalid(
            f"the sources contradict each other: at least {low}, and at most {high}"
        )
    return low, high


def _merge(rule: str, type_: str, run: Callable[..., Value]) -> Function:
    return Function(f"merge.{rule}", 1, {"*": type_}, type_, run, merges=True)


_XY: Final = {"x": "N", "y": "N"}
BUILT_IN: Final = (
    Function("math.add", 1, _XY, "N", lambda t, x, y: _fit(t, x + y)),
    Function("math.subtract", 1, _XY, "N", lambda t, x, y: _fit(t, x - y)),
    Function("math.multiply", 1, _XY, "N", lambda t, x, y: _fit(t, x * y)),
    Function("math.divide", 1, _XY, "N", _divide),
    Function("compare.equal", 1, {"x": "T", "y": "T"}, "i32", lambda t, x, y: int(same(t, x, y))),
    Function("compare.less", 1, {"x": "T", "y": "T"}, "i32", lambda _, x, y: int(x < y)),
    Function(
        "compare.choose",
        1,
        {"if": "i32", "then": "T", "else": "T"},
        "T",
        lambda _, if_, then, else_: then if if_ else else_,
    ),
    Function("list.of", 1, {"*": "T"}, "[T]", lambda _, *items: items),
    Function("list.sum", 1, {"items": "[N]"}, "N", _sum),
    Function("list.length", 1, {"items": "[T]"}, "i32", lambda _, items: len(items)),
    Function(
        "text.join",
        1,
        {"items": "[text]", "between": "text"},
        "text",
        lambda _, items, between: _join(items, between),
    ),
    Function("text.of", 1, {"value": "T"}, "text", numbers.format_value),
    _merge("last", "V", lambda _, said: said),
    _merge("min", "N", lambda _, *said: min(said, key=_signed)),
    _merge("max", "N", lambda _, *said: max(said, key=_signed)),
    _merge("counter", "N", _count),
    _merge("union", "[T]", _union),
    _merge("interval", "[N]", _meet),
)


class Functions:
    """The functions of a node, by name.

    Raises:
        ProgramInvalid: a name is there twice, or a type is unknown.
    """

    def __init__(self, functions: Iterable[Function] = BUILT_IN) -> None:
        self._functions: dict[str, Function] = {}
        for function in functions:
            self.register(function)

    def register(self, function: Function) -> None:
        """Add a function: the rule of another package, put in where a node is built."""
        if function.name in self._functions:
            raise ProgramInvalid(f"the function {function.name} is there twice")
        known = {*TYPES, *_VARIABLES, *(f"[{name}]" for name in _VARIABLES)}
        for type_ in (*function.params.values(), function.result):
            if type_ not in known:
                raise ProgramInvalid(f"{function.show()} has the unknown type {type_}")
        self._functions[function.name] = function

    def has(self, name: str) -> bool:
        """Say whether there is a function of that name."""
        return name in self._functions

    def get(self, name: str) -> Function:
        """Return a function.

        Raises:
            ProgramInvalid: there is none of that name.
        """
        try:
            return self._functions[name]
        except KeyError:
            known = ", ".join(sorted(self._functions))
            raise ProgramInvalid(f"no function '{name}'", hint=f"there are {known}") from None
