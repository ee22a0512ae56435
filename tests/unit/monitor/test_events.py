"""Every line of the log counts, written or not."""

from xsc.base.clock import ManualClock
from xsc.base.log import SilentLog
from xsc.monitor.events import LINES_KEPT, CountedLog
from xsc.node.logging import JsonLog


def test_lines_count_whatever_becomes_of_them(capsys):
    log = CountedLog(JsonLog(ManualClock(0), "error"), ManualClock(0))
    for _ in range(1_000):
        log.info("storage.put", size_bytes=3, peer=b"x", duration_ms=2, ok=True, fuel="many")
    log.warning("storage.put", size_bytes=1)
    log.error("node.hurt")
    rows = {row.event: row for row in log.counts()}
    assert rows["storage.put"].lines == 1_001
    assert rows["storage.put"].size_bytes == 3_001
    assert rows["storage.put"].duration_ms == 2_000
    assert rows["storage.put"].fuel == 0
    assert rows["node.hurt"].lines == 1
    assert "storage.put" not in capsys.readouterr().err


def test_the_last_lines_are_kept_and_no_more():
    clock = ManualClock(5)
    log = CountedLog(SilentLog(), clock)
    for number in range(LINES_KEPT + 3):
        log.info("storage.put", number=number)
    log.error("node.hurt")
    kept = log.last()
    assert len(kept) == LINES_KEPT
    assert kept[0].fields == {"number": 4}
    assert (kept[-1].at_ms, kept[-1].level, kept[-1].event) == (
        clock.now_ms(),
        "error",
        "node.hurt",
    )
