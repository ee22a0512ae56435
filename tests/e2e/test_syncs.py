"""What binds a node leaves it after the disk has it: shown by the system calls of real nodes.

Two nodes run under strace. `-yy` names the file, or both ends of the connection,
behind each descriptor, so nothing has to be guessed from numbers. On a
connection requests and answers take turns (HTTP/1.1 without pipelining), hence
an answer belongs to the request that was received last on the same one, and the
first bytes of what is received (`-s`) tell which method it asked for.

The order is that of lines, not of clocks: strace writes a line while it holds
the thread, and a call that others interleave has two, its beginning and its
end. A sync counts for an answer if it began after something was written to the
same file, all within the time from the request's last byte to the answer's
first one, and ended well. So it cannot be one that belongs to an earlier request.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest

from tests.e2e.conftest import PROGRAMS, Member, serves, wait_for
from xsc.client.calls import Calls

SIZES = [1, 5_000, 300_000, 1_500_000, 4_194_305, 9_000_000]
LARGE_AT_ONCE = 4
SMALL = 40
SMALL_AT_ONCE = 10
"""So many that calls to the host gather and share requests (`peers.batch`)."""
RECEIVE = ("recvfrom", "recvmsg", "read")
SEND = ("sendto", "sendmsg", "write", "writev")
WRITE = ("write", "writev", "pwrite64")
SYNC = ("fdatasync", "fsync")
STRACE = [
    *("strace", "-f", "--seccomp-bpf", "-q", "-yy", "-s", "64", "-e", "signal=none"),
    *("-e", f"trace={','.join(sorted({*RECEIVE, *SEND, *WRITE, *SYNC}))}"),
]
PUTS = ("storage.put", "peers.batch")
HEADS_BYTES_MAX = 1_024
"""What a put brings and no body holds: its head of HTTP, and a little of that of its frame."""


@dataclass(frozen=True)
class Call:
    """A system call, and the lines of its beginning and end."""

    begin: int
    end: int
    name: str
    target: str
    """The file or the connection."""
    data: str
    """The first bytes, as strace writes them."""
    result: int


_LINE = re.compile(r"([0-9]+) +(.*)")
_CALL = re.compile(r"([a-z0-9]+)\([0-9]+<(TCP:\[.*?\]|.*?)>(.*)\) += (-?[0-9]+)(?: .*)?")
_DATA = re.compile(r'"((?:[^"\\]|\\.)*)"')


def read_calls(text: str) -> list[Call]:
    """Return the calls of a trace that have ended, in the order of their ends."""
    calls, begun = [], {}
    for number, line in enumerate(text.splitlines()):
        thread, said = _LINE.fullmatch(line).groups()
        begin = number
        if said.endswith(" <unfinished ...>"):
            begun[thread] = (number, said.removesuffix(" <unfinished ...>"))
            continue
        if said.startswith("<... "):
            begin, before = begun.pop(thread)
            said = before + said.partition(" resumed>")[2]
        if (found := _CALL.fullmatch(said)) is not None:
            name, target, rest, result = found.groups()
            data = _DATA.search(rest)
            calls.append(Call(begin, number, name, target, data[1] if data else "", int(result)))
    return calls


@dataclass(frozen=True)
class Exchange:
    """A request and its answer, on either side; the places are lines."""

    request: str
    """Method and path."""
    status: int
    asked: int
    """The first byte of the request."""
    whole: int
    """Its last byte."""
    size: int
    answered: int
    """The first byte of the answer."""


class Trace:
    """What a node did."""

    def __init__(self, text: str) -> None:
        self.calls = read_calls(text)
        self.answered = list(self._exchanges(RECEIVE, SEND))
        self.asked = list(self._exchanges(SEND, RECEIVE))

    def _exchanges(self, ask: tuple[str, ...], answer: tuple[str, ...]) -> Iterator[Exchange]:
        """Yield the exchanges in which requests travel by one kind of call, answers by the other.

        An answer that is sent is there once the call begins, one that is received once it ends.
        """
        waiting: dict[str, tuple[str, list[Call]]] = {}
        for call in self.calls:
            if not call.target.startswith("TCP:") or call.result <= 0:
                continue
            line = call.data.partition(r"\r\n")[0]
            if call.name in ask:
                if line.endswith(" HTTP/1.1") or re.match(r"(GET|POST|DELETE) /", line):
                    waiting[call.target] = (line.removesuffix(" HTTP/1.1"), [])
                if call.target in waiting:
                    waiting[call.target][1].append(call)
            elif line.startswith("HTTP/1.1 ") and call.target in waiting:
                request, asking = waiting.pop(call.target)
                yield Exchange(
                    request,
                    int(line.split(" ")[1]),
                    asking[0].begin,
                    asking[-1].end,
                    sum(part.result for part in asking),
                    call.begin if answer is SEND else call.end,
                )

    def synced(self, database: str, after: int, before: int) -> list[int]:
        """Return, for each sync between two lines, how many bytes written there it covers."""
        waiting: dict[str, list[Call]] = {}
        covered = []
        for call in self.calls:
            if f"/db/{database}/" not in call.target or call.begin < after or call.end > before:
                continue
            if call.name in WRITE:
                waiting.setdefault(call.target, []).append(call)
            elif call.name in SYNC and call.result == 0:
                kept = waiting.get(call.target, [])
                done = [write for write in kept if write.end < call.begin]
                if done:
                    covered.append(sum(write.result for write in done))
                waiting[call.target] = [write for write in kept if write not in done]
        return covered


def peers(exchanges: list[Exchange], *methods: str) -> list[Exchange]:
    return [item for item in exchanges if item.request.removeprefix("POST /peer/v1/") in methods]


@contextmanager
def traced(folder: Path, name: str) -> Iterator[Member]:
    """Run a node under strace, and stop it at the end."""
    member = Member(folder / name)
    words = [sys.executable, "-m", "xsc", "--home", str(member.home), "node", "start"]
    options = ["--name", name, "--settle-interval", "1h", "--compute-workers", "1"]
    # Something falls due within seconds.
    options += ["--storage-price-gib-hour", "10000000"]
    options += ["--storage-price-max-gib-hour", "40000000"]
    with (folder / f"{name}.log").open("wb") as log:
        strace = subprocess.Popen(
            [*STRACE, "-o", str(folder / f"{name}.trace"), *words, *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    pid = None
    try:
        wait_for(lambda: strace.poll() is not None or (member.home / "node.pid").exists())
        assert strace.poll() is None, (folder / f"{name}.log").read_text()
        pid = int((member.home / "node.pid").read_text())
        wait_for(lambda: serves(member, pid))
        yield member
        os.kill(pid, signal.SIGTERM)
        assert strace.wait(30) == 0
    finally:
        if strace.poll() is None:
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
            strace.kill()
            strace.wait()


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """Let two nodes trade, and return the traces of both: a host, and an owner of objects."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed, and nothing else sees the order of syncs and sends")
    folder = tmp_path_factory.mktemp("syncs")
    with traced(folder, "host") as host, traced(folder, "owner") as owner:
        added = owner("peer add -", stdin=host("peer invite").line.encode())
        assert added.code == 0, added.err
        wait_for(lambda: owner("peer ls --json").json["peers"][0]["state"] == "up")
        assert owner("peer recognise host 10%").code == 0
        stored = [owner.put(os.urandom(size)) for size in SIZES]
        calls = Calls(owner.home)
        with ThreadPoolExecutor(LARGE_AT_ONCE) as pool:
            list(pool.map(calls.put, [BytesIO(os.urandom(2**21)) for _ in range(LARGE_AT_ONCE)]))
        with ThreadPoolExecutor(SMALL_AT_ONCE) as pool:
            list(pool.map(calls.put, [BytesIO(os.urandom(20_000)) for _ in range(SMALL)]))
        # One lease at a time, so that no two settlements overlap.
        assert owner("ledger settle").code == 0
        words = ["compute", "invoke", PROGRAMS / "endless.wasm", "spin", "--on", "host"]
        owner([*words, "--fuel", "20000000"]).fails(4, "fuel_exhausted")
        assert owner("ledger settle").code == 0
        owner.put(os.urandom(9_000_000))
        # What is put after the challenge of the hour is proven in the next one.
        owner([*words, "--fuel", "20000000"]).fails(4, "fuel_exhausted")
        assert owner("ledger settle").code == 0
        for capability in stored:
            assert owner("store rm -", stdin=capability.encode()).code == 0
    return (
        Trace((folder / "host.trace").read_text()),
        Trace((folder / "owner.trace").read_text()),
    )


def test_a_storage_receipt_follows_the_sync_of_its_bodies(traces):
    host, _ = traces
    for method in PUTS:
        puts = peers(host.answered, method)
        assert puts
        for put in puts:
            assert put.status == 200
            covered = host.synced("bodies", put.whole, put.answered)
            assert covered, f"no sync of the bodies before the answer in line {put.answered}"
            assert sum(covered) > put.size - HEADS_BYTES_MAX
    # Objects that come one after the other share no sync.
    puts = peers(host.answered, "storage.put")
    assert len(host.synced("bodies", puts[0].asked, puts[-1].answered)) > len(SIZES)


def test_a_capability_follows_the_syncs_of_all_that_it_needs(traces):
    _, owner = traces
    stored = [item for item in owner.answered if item.request == "POST /v1/objects"]
    assert [item.status for item in stored] == [201] * (len(SIZES) + LARGE_AT_ONCE + SMALL + 1)
    asked = peers(owner.asked, *PUTS)
    for put in stored:
        receipts = [item.answered for item in asked if put.asked < item.answered < put.answered]
        assert receipts
        # Half of the columns lie on the owner itself; its entry in the list comes last.
        assert owner.synced("bodies", put.asked, put.answered)
        assert owner.synced("state", min(receipts), put.answered)


def test_a_deletion_receipt_follows_its_sync(traces):
    host, _ = traces
    deleted = peers(host.answered, "storage.delete")
    assert [item.status for item in deleted] == [200] * len(SIZES)
    for item in deleted:
        assert host.synced("bodies", item.whole, item.answered)


def test_a_lease_follows_its_sync(traces):
    host, owner = traces
    granted = peers(host.answered, "market.lease")
    assert [lease.status for lease in granted] == [200] * len(granted)
    assert len(granted) >= 2
    for lease in granted:
        assert host.synced("state", lease.whole, lease.answered)
    # The customer has it on its disk before it sends anything under it.
    for lease, used in (("market.lease", "storage.put"), ("market.lease", "compute.run")):
        first = peers(owner.asked, used)[0].asked
        taken = max(item.answered for item in peers(owner.asked, lease) if item.answered < first)
        assert owner.synced("state", taken, first)


def test_vouchers_and_entries_follow_their_syncs(traces):
    host, owner = traces
    settled = [item for item in owner.answered if item.request == "POST /v1/ledger/settle"]
    # The host is asked for its count first.
    counts = peers(owner.asked, "market.account")
    vouchers = [
        max((item for item in counts if item.asked < each.answered), key=lambda item: item.asked)
        for each in settled
    ]
    assert len(vouchers) == len(settled) == 3
    for voucher in vouchers:
        # The route takes no body, and begins before the empty one of the command is there.
        began = max(item.asked for item in settled if item.asked < voucher.asked)
        assert owner.synced("state", began, voucher.asked)

    proposed = peers(host.asked, "ledger.propose")
    # What fell due since is booked as the nodes stop.
    assert len(proposed) >= len(vouchers)
    for entry in proposed:
        (voucher,) = [
            item
            for item in peers(host.answered, "market.account")
            if item.whole < entry.asked < item.answered
        ]
        # Voucher and the creditor's half; then the debtor's half, which says what is settled.
        assert len(host.synced("state", voucher.whole, entry.asked)) >= 2
        assert host.synced("state", entry.answered, voucher.answered)
    countersigned = peers(owner.answered, "ledger.propose")
    assert [entry.status for entry in countersigned] == [200] * len(proposed)
    for entry in countersigned:
        assert owner.synced("state", entry.whole, entry.answered)


def test_a_recognition_is_answered_after_its_sync(traces):
    _, owner = traces
    (set_,) = [item for item in owner.answered if item.request.endswith("/recognise")]
    assert owner.synced("space", set_.whole, set_.answered)


def test_a_trace_without_the_sync_is_seen_through():
    socket, file = "5<TCP:[127.0.0.1:1->127.0.0.1:2]>", "7</h/db/bodies/000003.log>"
    request = rf'1 recvfrom({socket}, "POST /peer/v1/storage.put HTTP/1.1\r\nHost"..., 9) = 90'
    rest = f'1 recvfrom({socket}, "rest", 9) = 4000'
    write = f'2 write({file}, "abc"..., 4090) = 4090'
    sync = f"2 fdatasync({file}) = 0"
    answer = rf'1 sendto({socket}, "HTTP/1.1 200 OK\r\n"..., 99, 0, NULL, 0) = 99'
    began, ended = f"2 fdatasync({file} <unfinished ...>", "2 <... fdatasync resumed>) = 0"

    def covered(*lines: str) -> list[int]:
        trace = Trace("\n".join(lines))
        (put,) = peers(trace.answered, "storage.put")
        assert (put.size, put.status) == (4090, 200)
        return trace.synced("bodies", put.whole, put.answered)

    assert covered(request, rest, write, sync, answer) == [4090]
    assert covered(request, rest, write, began, ended, answer) == [4090]
    assert covered(request, rest, write, answer, sync) == []
    assert covered(request, rest, write, began, answer, ended) == []
    assert covered(request, rest, began, write, ended, answer) == []
    assert covered(request, rest, sync, write, answer) == []
    assert covered(write, sync, request, rest, answer) == []
    assert covered(request, rest, write, sync.replace("bodies", "state"), answer) == []
    assert covered(request, rest, write, sync.replace("= 0", "= -1 EIO (I/O)"), answer) == []
