"""Quick functions: what is known of them is bounded, and goes with the first slow run."""

from __future__ import annotations

from xsc.compute.worker.quick import FUNCTIONS_REMEMBERED_MAX, QUICK_FUEL, QUICK_MS, QuickFunctions

ADD = (b"m" * 32, "add")


def test_a_function_is_quick_as_long_as_its_last_run_was():
    quick = QuickFunctions()
    assert ADD not in quick
    quick.took(ADD, QUICK_FUEL, QUICK_MS)
    assert ADD in quick
    assert (ADD[0], "sub") not in quick
    for slow in ((0, QUICK_MS + 1), (QUICK_FUEL + 1, 0)):
        quick.took(ADD, 0, 0)
        quick.took(ADD, *slow)
        assert ADD not in quick
    quick.took(ADD, 0, 0)
    quick.failed(ADD)
    assert ADD not in quick


def test_the_longest_unused_is_forgotten_first():
    quick = QuickFunctions()
    functions = [(b"m" * 32, str(number)) for number in range(FUNCTIONS_REMEMBERED_MAX)]
    for function in functions:
        quick.took(function, 0, 0)
    quick.took(functions[0], 0, 0)
    quick.took(ADD, 0, 0)
    assert functions[0] in quick
    assert functions[1] not in quick
    assert ADD in quick
