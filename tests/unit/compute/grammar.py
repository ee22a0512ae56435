"""Valid modules by chance, as text: every numeric instruction, memory, tables, calls, control.

Each is accepted by the engine; what it does is anybody's guess. Loops may be
endless, calls may recur without end, addresses may be anywhere.
"""

from __future__ import annotations

import random
from collections import defaultdict

from tests.unit.compute.numerics import INSTRUCTIONS

KINDS = ("i32", "i64", "f32", "f64")
GIVING = defaultdict(list)
for _name, (_params, _result, _) in INSTRUCTIONS.items():
    GIVING[_result].append((_name, _params))
LOADS = {
    "i32": ["i32.load", "i32.load8_s", "i32.load16_u"],
    "i64": ["i64.load", "i64.load32_s", "i64.load8_u"],
    "f32": ["f32.load"],
    "f64": ["f64.load"],
}
STORES = {
    "i32": ["i32.store", "i32.store8", "i32.store16"],
    "i64": ["i64.store", "i64.store32"],
    "f32": ["f32.store"],
    "f64": ["f64.store"],
}
INTEGERS = [0, 1, -1, 7, 255, 65535, 65536, 2**31 - 1, -(2**31)]
FLOATS = ["0", "-0", "1.5", "-1e30", "inf", "-inf", "nan", "0x1p-149"]


class Writer:
    """Writes one module."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.functions = [
            (
                [chance.choice(KINDS) for _ in range(chance.randrange(4))],
                chance.choice(KINDS),
            )
            for _ in range(chance.randint(1, 4))
        ]
        self.pages = chance.randrange(3)
        self.globals = [chance.choice(KINDS) for _ in range(3)]
        self.budget = 0
        self.locals: list[str] = []
        self.labels = 0

    def module(self) -> str:
        parts = [
            f"(type $t{place} (func {self._shape(params, result)}))"
            for place, (params, result) in enumerate(self.functions)
        ]
        parts.append(f'(memory (export "memory") {self.pages} {self.chance.choice(["", 4, 100])})')
        names = " ".join(f"$f{place}" for place in range(len(self.functions)))
        parts.append(f"(table 8 funcref) (elem (i32.const {self.chance.randrange(3)}) {names})")
        parts += [
            f"(global $g{place} (mut {kind}) ({kind}.const {self.constant(kind)}))"
            for place, kind in enumerate(self.globals)
        ]
        parts += [self.function(place) for place in range(len(self.functions))]
        if self.chance.random() < 0.1:
            parts.append("(func $start (global.set $g0 (global.get $g0))) (start $start)")
        return f"(module {' '.join(parts)})"

    @staticmethod
    def _shape(params: list[str], result: str) -> str:
        return " ".join(f"(param {kind})" for kind in params) + f" (result {result})"

    def function(self, place: int) -> str:
        params, result = self.functions[place]
        extra = [self.chance.choice(KINDS) for _ in range(3)]
        self.locals, self.budget, self.labels = params + extra, 60, 0
        body = " ".join(self.statement(4) for _ in range(self.chance.randrange(6)))
        head = f'(func $f{place} (export "f{place}") {self._shape(params, result)}'
        return f"{head} (local {' '.join(extra)}) {body} {self.value(result, 5)})"

    def constant(self, kind: str) -> str:
        if kind[0] == "f":
            return self.chance.choice(FLOATS)
        return str(self.chance.choice(INTEGERS))

    def address(self, depth: int) -> str:
        if self.chance.random() < 0.7:
            return f"(i32.const {self.chance.randrange(70_000)})"
        return self.value("i32", depth)

    def value(self, kind: str, depth: int) -> str:
        """The text of something that gives that type."""
        self.budget -= 1
        if depth <= 0 or self.budget < 0:
            return f"({kind}.const {self.constant(kind)})"
        ways = [
            self._operation,
            self._operation,
            self._operation,
            self._variable,
            self._load,
            self._call,
            self._choice,
            self._block,
        ]
        return self.chance.choice(ways)(kind, depth - 1)

    def _operation(self, kind: str, depth: int) -> str:
        name, params = self.chance.choice(GIVING[kind])
        return f"({name} {' '.join(self.value(param, depth) for param in params)})"

    def _variable(self, kind: str, depth: int) -> str:
        places = [place for place, found in enumerate(self.locals) if found == kind]
        if places and self.chance.random() < 0.7:
            place = self.chance.choice(places)
            if self.chance.random() < 0.5:
                return f"(local.tee {place} {self.value(kind, depth)})"
            return f"(local.get {place})"
        for place, found in enumerate(self.globals):
            if found == kind:
                return f"(global.get $g{place})"
        return f"({kind}.const {self.constant(kind)})"

    def _load(self, kind: str, depth: int) -> str:
        if kind == "i32" and self.chance.random() < 0.3:
            return self.chance.choice(["(memory.size)", f"(memory.grow {self.address(depth)})"])
        return f"({self.chance.choice(LOADS[kind])} {self.address(depth)})"

    def _call(self, kind: str, depth: int) -> str:
        able = [place for place, (_, result) in enumerate(self.functions) if result == kind]
        if not able:
            return self._operation(kind, depth)
        place = self.chance.choice(able)
        given = " ".join(self.value(param, depth) for param in self.functions[place][0])
        if self.chance.random() < 0.3:
            at = f"(i32.const {self.chance.randrange(9)})"
            return f"(call_indirect (type $t{place}) {given} {at})"
        return f"(call $f{place} {given})"

    def _choice(self, kind: str, depth: int) -> str:
        one, other, test = (self.value(item, depth) for item in (kind, kind, "i32"))
        if self.chance.random() < 0.5:
            return f"(select {one} {other} {test})"
        return f"(if (result {kind}) {test} (then {one}) (else {other}))"

    def _block(self, kind: str, depth: int) -> str:
        self.labels += 1
        label = f"$b{self.labels}"
        inside = " ".join(self.statement(depth) for _ in range(self.chance.randrange(3)))
        leave = f"(drop (br_if {label} {self.value(kind, depth)} {self.value('i32', depth)}))"
        return f"(block {label} (result {kind}) {inside} {leave} {self.value(kind, depth)})"

    def statement(self, depth: int) -> str:
        """The text of something that gives nothing."""
        kind = self.chance.choice(KINDS)
        if depth <= 0 or self.budget < 0:
            return "(nop)"
        match self.chance.randrange(9):
            case 0:
                store = self.chance.choice(STORES[kind])
                return f"({store} {self.address(depth - 1)} {self.value(kind, depth - 1)})"
            case 1:
                place = self.chance.randrange(len(self.globals))
                return f"(global.set $g{place} {self.value(self.globals[place], depth - 1)})"
            case 2:
                self.labels += 1
                label = f"$l{self.labels}"
                inside = self.statement(depth - 1)
                return f"(loop {label} {inside} (br_if {label} {self.value('i32', depth - 1)}))"
            case 3:
                how = self.chance.choice(["fill", "copy"])
                places = " ".join(self.address(depth - 1) for _ in range(3))
                return f"(memory.{how} {places})"
            case 4:
                at = f"(i32.const {self.chance.randrange(10)})"
                return self.chance.choice(
                    [
                        f"(table.set {at} (ref.func $f0))",
                        f"(table.set {at} (ref.null func))",
                        f"(drop (table.grow (ref.null func) {self.address(depth - 1)}))",
                        f"(table.fill {at} (ref.func $f0) {at})",
                    ]
                )
            case 5:
                return f"(if {self.value('i32', depth - 1)} (then {self.statement(depth - 1)}))"
            case 6 if self.chance.random() < 0.1:
                return "(unreachable)"
            case _ if self.locals:
                place = self.chance.randrange(len(self.locals))
                return f"(local.set {place} {self.value(self.locals[place], depth - 1)})"
        return f"(drop {self.value(kind, depth - 1)})"


def module_of(seed: int) -> str:
    """Return the text of the module of a number."""
    return Writer(random.Random(seed)).module()
