"""What the allocator keeps, measured on a process of its own."""

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from xsc.node.system import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory(64 * 2**20)
def churn():
    for _ in range(50):
        held = [bytearray(2**20) for _ in range(16)]
churn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
churn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

HOLES = r"""
import re
from pathlib import Path
from xsc.node.system import give_back_memory, keep_freed_memory
def held_mib():
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024
assert keep_freed_memory(64 * 2**20)
buffers = [bytearray(2**16) for _ in range(3200)]
last = buffers.pop()
del buffers
before = held_mib()
assert give_back_memory(64 * 2**20)
print(before - held_mib())
"""
glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")


@glibc
def test_pages_that_are_free_below_one_in_use_are_given_back():
    freed_mib = int(subprocess.check_output([sys.executable, "-c", HOLES]))
    assert freed_mib > 150  # of 200


@glibc
def test_buffers_that_come_and_go_cost_no_page_faults():
    def faults(how):
        return int(subprocess.check_output([sys.executable, "-c", FAULTS, how]))

    kept = faults("keep")
    # 800 buffers of 256 pages.
    assert kept < 800 * 256 // 100
