"""The type of a function.

Apart from `xsc.compute.wasm.values`, so that a sandbox worker need not load the
record models.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from xsc.base.limits import ARGUMENTS_MAX
from xsc.base.text import cut

NUMBERS = frozenset({"i32", "i64", "f32", "f64"})
_NAME_CHARS_SHOWN = 60
_TYPES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Signature:
    """The type of a function: value types by their WebAssembly names."""

    params: tuple[str, ...]
    results: tuple[str, ...]

    def show(self, name: str) -> str:
        """Return it for people, on one line of bounded length: `add(i32, i32) -> i32`."""
        text = f"{cut(name, _NAME_CHARS_SHOWN)}({_listed(self.params)})"
        if not self.results:
            return text
        results = _listed(self.results)
        return f"{text} -> {results}" if len(self.results) == 1 else f"{text} -> ({results})"

    @property
    def callable(self) -> bool:
        """Whether an order can hold what it takes, and a receipt what it gives."""
        return _callable(self.params, self.results)


def _listed(types: tuple[str, ...]) -> str:
    if len(types) <= _TYPES_SHOWN:
        return ", ".join(types)
    return f"{', '.join(types[:_TYPES_SHOWN])}, … {len(types)} in all"


@lru_cache(maxsize=1024)
def _callable(params: tuple[str, ...], results: tuple[str, ...]) -> bool:
    few = len(params) <= ARGUMENTS_MAX and len(results) <= ARGUMENTS_MAX
    return few and all(item in NUMBERS for item in (*params, *results))
