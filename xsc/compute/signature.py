"""The type of a function.

Apart from `xsc.compute.values`, so that a sandbox worker need not load the
record models.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

NUMBERS = frozenset({"i32", "i64", "f32", "f64"})


@dataclass(frozen=True, slots=True)
class Signature:
    """The type of a function: value types by their WebAssembly names."""

    params: tuple[str, ...]
    results: tuple[str, ...]

    def show(self, name: str) -> str:
        """Return it for people: `add(i32, i32) -> i32`."""
        text = f"{name}({', '.join(self.params)})"
        if not self.results:
            return text
        results = ", ".join(self.results)
        return f"{text} -> {results}" if len(self.results) == 1 else f"{text} -> ({results})"

    @property
    def numeric(self) -> bool:
        """Whether every value is a number: only those can be given and shown."""
        return _numeric(self.params, self.results)


@lru_cache(maxsize=1024)
def _numeric(params: tuple[str, ...], results: tuple[str, ...]) -> bool:
    return all(item in NUMBERS for item in (*params, *results))
