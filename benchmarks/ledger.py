"""A large ledger: its start, and its verification beside bookings; transfers between two nodes.

    python -m benchmarks.ledger start|serve FOLDER

are processes of their own: one prints what its start takes, the other is a debtor. A book is made
here as a node would have written it, with ten peers that are paid some thirty times a day.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.size import least
from xsc.base.clock import Executor
from xsc.base.encoding import Value, decode, encode
from xsc.base.limits import JOINT_RECORDS_MAX
from xsc.base.log import SilentLog
from xsc.base.tally import Rate
from xsc.db.group import GroupCommit
from xsc.db.leveldb import LevelDBKeyValue
from xsc.identity.context import Context
from xsc.identity.envelope import sign, sign_jointly
from xsc.identity.keys import KeyPair, network_id, verify
from xsc.ledger.audit import chain_end_bytes
from xsc.ledger.chain import ENTRY, MARK, Chain, key_of
from xsc.ledger.entry import EntryRow, Half, counter_half
from xsc.ledger.limits import LimitSettings
from xsc.ledger.proposals import PROPOSE
from xsc.ledger.service import LedgerService
from xsc.ledger.state import append, settle
from xsc.net.service import PeerNet
from xsc.net.transport.http import HttpTransport
from xsc.node import checking
from xsc.node.system import SystemClock, SystemEntropy, ThreadExecutor
from xsc.terms.voucher import Voucher

NETWORK = network_id("bench")
ROUNDS = least(3, 1)
KEY = KeyPair(b"k" * 32)
PEERS = [KeyPair(bytes([number]) * 32) for number in range(1, 11)]
EVERY_MS = 24 * 3_600_000 // (30 * len(PEERS))
BEGUN_MS = 1_600_000_000_000
PAGE = 4_096
BESIDE_S = 0.05
FLIGHT = 64
UNITS_MAX = 10**9
STOP = "bench.stop"


@dataclass
class Answer:
    """What a peer says."""

    header: dict[str, Value]
    parts: list[memoryview] = field(default_factory=list)


class Wire:
    """The way from one ledger to another in this process."""

    def __init__(self) -> None:
        self.others: dict[bytes, LedgerService] = {}
        self.me = b""

    async def call(
        self,
        peer: bytes,
        method: str,
        header: dict[str, Value],
        _parts: Sequence[bytes | memoryview] = (),
        **_times: object,
    ) -> Answer:
        """Have the other answer, with the bytes as they would be sent."""
        said: Any = decode(encode(header))
        found, _bodies = await self.others[peer].handlers()[method](self.me, said, ())
        answer: Any = decode(encode(found))
        return Answer(answer)


def ledger(key: KeyPair, path: Path, executor: Executor, wire: Any) -> LedgerService:
    state = LevelDBKeyValue(path)
    ports = (SystemClock(), SystemEntropy(), executor, wire, SilentLog())
    return LedgerService(
        Context(key, NETWORK, *ports, state, GroupCommit(state, executor).commit),
        credit=LimitSettings(10**15),
        checking=checking.processes,
    )


class Unsigning(KeyPair):
    """A key that does not sign."""

    def sign(self, message: bytes) -> bytes:  # noqa: ARG002
        """Return no signature."""
        return bytes(64)


def unsigned(key: KeyPair) -> KeyPair:
    """Return the key, but for signatures, which a start does not look at."""
    return Unsigning(key.seed)


async def write(chain: Chain, count: int, key: KeyPair, peers: Sequence[KeyPair]) -> None:
    """Have peers come to owe that often, the last time after the last snapshot."""
    owed = dict.fromkeys([peer.node_id for peer in peers], 0)
    heads = {peer.node_id: (0, bytes(32)) for peer in peers}
    changes: list[Any] = []
    for number in range(count):
        peer, at_ms = peers[number % len(peers)], BEGUN_MS + number * EVERY_MS
        state, of = chain.state, peer.node_id
        owed[of] += 100
        voucher = sign(
            Voucher(
                account=of,
                provider=key.node_id,
                customer=of,
                number=number,
                amount_micro=owed[of],
                until_ms=at_ms,
                count=None,
            ),
            peer,
            NETWORK,
        )
        own = sign(
            Half(
                kind="post",
                credit=key.node_id,
                debit=of,
                peer=of,
                seq=state.next_seq,
                prev=state.head,
                amount_micro=100,
                account=of,
                receipt=voucher.id,
                created_ms=at_ms,
            ),
            key,
            NETWORK,
        )
        seq, prev = heads[of]
        other = sign(counter_half(own, seq=seq, prev=prev, created_ms=at_ms), peer, NETWORK)
        heads[of] = seq + 1, other.id
        append(state, own)
        settle(state, own.record, other)
        row = EntryRow(half=own.raw, other=other.raw, voucher=voucher.raw)
        changes.append((key_of(ENTRY, own.record.seq), row.to_bytes()))
        if len(changes) >= PAGE or number == count - 1:
            end = chain_end_bytes(state.next_seq, state.head)
            chain.store.write([*changes, (MARK, end)], sync=True)
            changes.clear()
            if number < count - 1:
                await chain.snapshot()


def started(folder: Path) -> None:
    """Print the seconds of a start, and MiB resident after it."""
    begun = time.perf_counter()
    made = ledger(KEY, folder, ThreadExecutor(2), Wire())
    took = time.perf_counter() - begun
    assert made.count()
    # Not `ru_maxrss`: that is also what the process had resident that started this one.
    peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
    print(took, int(peak) // 1024)


def start(quick: bool) -> None:
    count = least(100_000 if quick else 1_000_000, 5_000)
    folder = Path(tempfile.mkdtemp(prefix="xsc-ledger-"))
    try:
        executor = ThreadExecutor(2)
        made = ledger(KEY, folder, executor, Wire())
        asyncio.run(write(made.chain, count, unsigned(KEY), [unsigned(peer) for peer in PEERS]))
        made.chain.store.close()
        executor.close()
        rounds = []
        for _ in range(ROUNDS):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.ledger", "start", str(folder)],
                capture_output=True,
                text=True,
                check=True,
            )
            rounds.append([float(word) for word in done.stdout.split()])
        took, resident = (median(one[at] for one in rounds) for at in range(2))
        print(
            f"  start on {count} entries from a snapshot   {took:.2f} s, {resident:.0f} MiB "
            f"resident at most"
        )
    finally:
        shutil.rmtree(folder)


def _signatures(count: int) -> float:
    """Return the seconds of so many checks in this process."""
    signed = [(KEY.sign(at.to_bytes(100, "big")), at.to_bytes(100, "big")) for at in range(256)]
    begun = time.perf_counter()
    for number in range(count):
        verify(KEY.node_id, *signed[number % 256])
    return time.perf_counter() - begun


def signatures(count: int) -> float:
    """Return the seconds of so many checks on both cores."""
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(_signatures, [1, 1]))
        return max(pool.map(_signatures, [count // 2, count // 2]))


async def booked(theirs: LedgerService, account: bytes, owed: int) -> float:
    """Return the seconds of one booking."""
    said = Voucher(
        account=account,
        provider=account,
        customer=KEY.node_id,
        number=owed,
        amount_micro=owed,
        until_ms=0,
        count=None,
    )
    voucher = sign(said, KEY, NETWORK).raw
    begun = time.perf_counter()
    await theirs.collect(voucher)
    return time.perf_counter() - begun


async def beside(
    mine: LedgerService, executor: Executor, folder: Path
) -> tuple[float, float, float]:
    """Return the seconds of a verification, and of the longest booking beside it and after it."""
    peer, owed, waits = KeyPair(os.urandom(32)), 0, []
    wire = Wire()
    theirs = ledger(peer, folder, executor, wire)
    wire.others, wire.me = {KEY.node_id: mine}, peer.node_id
    running = asyncio.create_task(mine.verify())
    begun = time.perf_counter()
    while not running.done():
        owed += 1
        waits.append(await booked(theirs, peer.node_id, owed))
        await asyncio.sleep(BESIDE_S)
    await running
    took = time.perf_counter() - begun
    after = []
    for _ in waits:
        owed += 1
        after.append(await booked(theirs, peer.node_id, owed))
        await asyncio.sleep(BESIDE_S)
    theirs.chain.store.close()
    return took, max(waits), max(after)


def verified(quick: bool) -> None:
    count = least(5_000 if quick else 100_000, 500)
    folder = Path(tempfile.mkdtemp(prefix="xsc-ledger-"))
    try:
        executor = ThreadExecutor(4)
        mine = folder / "mine"
        made = ledger(KEY, mine, executor, Wire())
        asyncio.run(write(made.chain, count, KEY, PEERS))
        made.chain.store.close()
        rounds = []
        for number in range(ROUNDS):
            made = ledger(KEY, mine, executor, Wire())
            alone = signatures(3 * made.count())
            took, wait, after = asyncio.run(beside(made, executor, folder / str(number)))
            rounds.append((took / alone, took, alone, wait, after))
            made.chain.store.close()
        ratio, took, alone, wait, after = (median(one[at] for one in rounds) for at in range(5))
        print(
            f"  verify of {count} entries    {took:.1f} s, {ratio:.2f} of their signatures alone "
            f"on both cores ({alone:.1f} s); longest booking beside it {wait * 1e3:.0f} ms, "
            f"of as many after it {after * 1e3:.0f} ms"
        )
        executor.close()
    finally:
        shutil.rmtree(folder)


class Party:
    """A node that only books, with its database."""

    def __init__(self, key: KeyPair, folder: Path, executor: Executor) -> None:
        clock, log, state = SystemClock(), SilentLog(), LevelDBKeyValue(folder)
        self.net = PeerNet(
            key=key,
            network_name="bench",
            clock=clock,
            entropy=SystemEntropy(),
            executor=executor,
            transport=HttpTransport(listen="127.0.0.1:0", key=key),
            log=log,
            state=state,
            commit=GroupCommit(state, executor).commit,
            name="bench",
            advertise=(),
            accepts=False,
        )
        self.network = self.net.context.network
        self.ledger = LedgerService(self.net.context, credit=LimitSettings(10**15))
        self.net.server.register(self.ledger.handlers())
        # A node takes some 540 proposals a second of one peer. This is how many it could.
        self.net.server.quota.units = Rate(UNITS_MAX, 1_000)
        self.net.share(PROPOSE, halves=True)
        self.net.server.register({STOP: self._stop})
        self.stopped = asyncio.Event()

    async def _stop(self, *_: object) -> tuple[dict[str, Value], Sequence[bytes]]:
        self.stopped.set()
        return {"v": 1}, ()


async def serve(folder: Path) -> None:
    """Be the debtor, in a process of its own, until it is told to stop."""
    executor = ThreadExecutor(2)
    party = Party(PEERS[0], folder, executor)
    await party.net.start()
    print(party.net.invite(600_000), flush=True)
    await party.stopped.wait()
    await party.net.stop()
    executor.close()


async def transfer(folder: Path, count: int, flight: int) -> float:
    """Return transfers a second, each signed by both and on both disks."""
    command = [sys.executable, "-m", "benchmarks.ledger", "serve", str(folder / "theirs")]
    debtor = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    executor = ThreadExecutor(2)
    party = Party(KEY, folder / "mine", executor)
    try:
        await party.net.start()
        assert debtor.stdout is not None
        peer = await party.net.join(debtor.stdout.readline().strip())
        said = [
            Voucher(
                account=os.urandom(32),
                provider=KEY.node_id,
                customer=peer,
                number=1,
                amount_micro=100,
                until_ms=0,
                count=None,
            )
            for _ in range(count)
        ]
        left = [
            signed.raw
            for at in range(0, count, JOINT_RECORDS_MAX)
            for signed in sign_jointly(said[at : at + JOINT_RECORDS_MAX], PEERS[0], party.network)
        ]

        async def book() -> None:
            while left:
                await party.ledger.collect(left.pop())

        begun = time.perf_counter()
        await asyncio.gather(*(book() for _ in range(flight)))
        took = time.perf_counter() - begun
        await party.net.context.caller.call(peer, STOP, {"v": 1})
        return count / took
    finally:
        await party.net.stop()
        party.ledger.chain.store.close()
        executor.close()
        debtor.terminate()
        debtor.wait()


def alone(folder: Path, count: int) -> float:
    """Return the rate of what a transfer needs in any case, in one process.

    That is two signatures and four checks, of the voucher at both, and three synced writes.
    """
    store, raw = LevelDBKeyValue(folder), bytes(1_500)
    begun = time.perf_counter()
    for number in range(count):
        message = number.to_bytes(100, "big")
        signed = [KEY.sign(message), KEY.sign(message)]
        for signature in signed * 2:
            verify(KEY.node_id, signature, message)
        for write in range(3):
            store.write([(b"%d/%d" % (number, write), raw)], sync=True)
    took = time.perf_counter() - begun
    store.close()
    return count / took


def transfers(quick: bool) -> None:
    count = least(1_000 if quick else 4_000, 64)
    rounds = []
    for _ in range(ROUNDS):
        folder = Path(tempfile.mkdtemp(prefix="xsc-ledger-"))
        try:
            rate = asyncio.run(transfer(folder, count, FLIGHT))
            rounds.append((rate, alone(folder / "alone", count)))
        finally:
            shutil.rmtree(folder)
    rate, reference = (median(one[at] for one in rounds) for at in range(2))
    print(
        f"  transfers between two processes, {FLIGHT} open   {rate:.0f}/s (their signatures and "
        f"synced writes alone, one after the other: {reference:.0f}/s)"
    )


def run(quick: bool) -> None:
    """Measure, and print."""
    print("\nledger: a large book, and transfers between two nodes")
    start(quick)
    verified(quick)
    transfers(quick)


if __name__ == "__main__" and sys.argv[1:2] == ["start"]:
    started(Path(sys.argv[2]))
if __name__ == "__main__" and sys.argv[1:2] == ["serve"]:
    asyncio.run(serve(Path(sys.argv[2])))
