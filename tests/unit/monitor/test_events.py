"""Every line of the log counts, written or not."""

from xsc.base.clock import ManualClock
from xsc.monitor.events import CountedLog
from xsc.node.logging import JsonLog


def test_lines_count_whatever_becomes_of_them(capsys):
    log = CountedLog(JsonLog(ManualClock(0), "error"))
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
