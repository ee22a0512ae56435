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


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_buffers_that_come_and_go_cost_no_page_faults():
    def faults(how):
        return int(subprocess.check_output([sys.executable, "-c", FAULTS, how]))

    kept = faults("keep")
    # 800 buffers of 256 pages.
    assert kept < 800 * 256 // 100
