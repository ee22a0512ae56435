"""Log lines: one JSON object each, and so many of one event about one peer."""

import io
import json

from xsc.base.clock import ManualClock
from xsc.node.logging import LOG_KINDS_MAX, LOG_LINES_MAX, JsonLog, SentenceLog, node_log


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_one_peer_causes_so_many_lines_a_minute_and_others_theirs():
    clock, stream = ManualClock(), io.StringIO()
    log = JsonLog(clock, "info", stream)
    for _ in range(10 * LOG_LINES_MAX):
        log.warning("refused", peer=b"a" * 32)
    log.warning("refused", peer=b"b" * 32)
    log.warning("another", peer=b"a" * 32)
    assert len(lines(stream)) == LOG_LINES_MAX + 2
    clock.advance_to(clock.now_ms() + 60_000)
    log.warning("refused", peer=b"a" * 32)
    log.warning("refused", peer=b"a" * 32)
    assert [line.get("dropped") for line in lines(stream)[-2:]] == [9 * LOG_LINES_MAX, None]


def test_kinds_without_end_are_not_remembered_without_end():
    log = JsonLog(ManualClock(), "info", io.StringIO())
    for number in range(3 * LOG_KINDS_MAX):
        log.info("seen", peer=number.to_bytes(32, "big"))
    assert len(log._written) <= LOG_KINDS_MAX + 1


def test_a_command_tells_warnings_and_errors_as_sentences():
    stream = io.StringIO()
    log = SentenceLog(ManualClock(), stream)
    log.info("leases_recalled", peer="alice", leases=3)
    log.warning("recovery.leases_not_recalled", peer="alice", code="busy")
    log.warning("market.not_settled", peer="carol", code="peer_silent")  # named at the end
    log.error("ledger.conflict", peer="bob\x1b[2J", entry=7, secret="s")
    log.warning("ledger.unanswered")
    assert stream.getvalue().splitlines() == [
        "warning: recovery leases not recalled (peer alice): busy",
        "error: ledger conflict (peer bob?[2J): entry 7",
        "warning: ledger unanswered",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_node_writes_text_to_a_terminal_and_json_elsewhere():
    clock, terminal, file = ManualClock(1_700_000_000_000), Terminal(), io.StringIO()
    for stream in (terminal, file):
        log = node_log(clock, "info", stream)
        log.info("storage.stored", peer="b\x1b]0;x\a", size_bytes=2048, used_ppm=123_456, token="t")
        log.warning("health.down", peer="bob", reason="silent", availability_ppm=999_999)
        log.info("ledger.paid", amount_micro=-7, role="debtor")
    assert terminal.getvalue().splitlines() == [
        "2023-11-14 22:13:20 UTC storage stored (peer b?]0;x?): size 2.0 KiB, used 12.3%",
        "2023-11-14 22:13:20 UTC warning: health down (peer bob): silent, availability 99.9%",
        "2023-11-14 22:13:20 UTC ledger paid: amount -0.000007 credits, role debtor",
    ]
    assert lines(file)[2]["amount_micro"] == -7


class FullDisk(io.StringIO):
    """A file on a disk that takes nothing while it is full."""

    full = True

    def flush(self):
        if self.full:
            raise OSError(28, "No space left on device")


def test_a_full_disk_under_the_log_ends_nothing():
    stream = FullDisk()
    log = JsonLog(ManualClock(), "info", stream)
    log.error("first")
    stream.full = False
    log.error("second")
    assert [line["event"] for line in lines(stream)] == ["first", "second"]
