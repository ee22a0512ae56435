"""A few ledgers and the wires between them, which lose and repeat what they are told to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from xsc.base.clock import Executor, InlineExecutor, ManualClock, SeededEntropy
from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import PeerSilent, PeerUnknown
from xsc.base.keyvalue import KeyValue
from xsc.db.memory import MemoryKeyValue
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, sign
from xsc.identity.keys import KeyPair, network_id
from xsc.ledger.chain import ENTRY, MARK, RESTART, key_of
from xsc.ledger.entry import EntryRow
from xsc.ledger.exchange import Restarted
from xsc.ledger.incarnation import Noted
from xsc.ledger.limits import LimitSettings
from xsc.ledger.payments import report
from xsc.ledger.service import LedgerService
from xsc.ledger.state import LedgerState, Snapshot, snapshot_of
from xsc.terms.voucher import Voucher

NETWORK = network_id("test")
STARTER = 1_000_000


@dataclass(frozen=True, slots=True)
class Answer:
    header: dict[str, Value]
    parts: list[memoryview] = field(default_factory=list)


@dataclass
class Lines:
    """A log that keeps its lines."""

    lines: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def info(self, event, **fields):
        self.lines.append((event, fields))

    warning = info
    error = info

    @property
    def events(self) -> list[str]:
        return [event for event, _ in self.lines]


@dataclass(frozen=True)
class Stored:
    """The rows of a ledger, by what they are."""

    mark: bytes | None
    halves: dict[int, bytes]
    others: dict[int, bytes]
    vouchers: dict[int, bytes]
    restart: bytes | None

    def rows(self) -> list[tuple[bytes, bytes]]:
        one = [(MARK, self.mark), (RESTART, self.restart)]
        rows = [(key, raw) for key, raw in one if raw is not None]
        for seq, half in self.halves.items():
            row = EntryRow(half=half, other=self.others.get(seq), voucher=self.vouchers.get(seq))
            rows.append((key_of(ENTRY, seq), row.to_bytes()))
        return rows


def rows_of(member: Member) -> dict[bytes, bytes]:
    """Return what the store has of the ledger, its snapshot and index."""
    return dict(member.store.scan(b"ledger/", b"ledger0"))


def put(member: Member, rows: dict[bytes, bytes]) -> None:
    """Have a store hold these rows of a ledger and no others."""
    old = [(key, None) for key in rows_of(member)]
    member.store.write([*old, *rows.items()], sync=True)


def digest(state: LedgerState) -> tuple[Snapshot, list[tuple[bytes, bytes]]]:
    """Return all that follows from the halves."""
    return snapshot_of(state), [*state.index.scan(b"", b"\xff")]


def replayed(member: Member) -> LedgerState:
    """Return what the halves alone give, without snapshot and index."""
    store = MemoryKeyValue()
    store.write(member.rows().rows(), sync=True)
    return Member(member.circle, member.number, store).ledger.chain.state


class Member:
    """One node: key, store, and the service on it."""

    executor: Executor = InlineExecutor()

    def __init__(self, circle: Circle, number: int, store: KeyValue | None = None) -> None:
        self.circle = circle
        self.number = number
        self.key = KeyPair(bytes([number]) * 32)
        self.id = self.key.node_id
        self.store = store or MemoryKeyValue()
        self.log = Lines()
        self.starts = 0
        self.ledger = self.start()

    def start(self) -> LedgerService:
        self.starts += 1
        return LedgerService(
            Context(
                self.key,
                NETWORK,
                self.circle.clock,
                SeededEntropy(b"%d/%d" % (self.number, self.starts)),
                self.executor,
                Wire(self.circle, self.id),
                self.log,
                self.store,
                None,
            ),
            credit=LimitSettings(STARTER),
        )

    def rows(self) -> Stored:
        """Return the rows of the ledger."""

        rows = {
            int.from_bytes(key, "big"): EntryRow.from_bytes(raw)
            for key, raw in self.ledger.chain.table(ENTRY)
        }
        return Stored(
            mark=self.store.get(MARK),
            halves={seq: row.half for seq, row in rows.items()},
            others={seq: row.other for seq, row in rows.items() if row.other},
            vouchers={seq: row.voucher for seq, row in rows.items() if row.voucher is not None},
            restart=self.store.get(RESTART),
        )

    def beside(self) -> list[tuple[bytes, bytes]]:
        """Return what the store has beside the chain."""
        return [*self.store.scan(b"ledger-", b"ledger.")]

    def crash(self) -> None:
        self.store.crash()
        self.ledger = self.start()

    async def come_back(self, noted: Noted | None = None) -> Restarted:
        """Lose all, and recover from the others."""
        self.store = MemoryKeyValue()
        self.ledger = self.start()
        others = [other.id for other in self.circle.members if other is not self]
        done = await self.ledger.restart(others, noted or Noted())
        await self.ledger.confirm_head(others)
        return done


class Circle:
    """Members by id, the fate of each message, and what changes each answer on its way."""

    def __init__(self, count: int = 2) -> None:
        self.clock = ManualClock()
        self.fate: Callable[[], str] = lambda: "pass"
        self.change: Callable[[Answer], None] = lambda answer: None
        self.sent: list[tuple[bytes, bytes, str, bytes]] = []
        self.gone: set[bytes] = set()
        self.members = [Member(self, number) for number in range(1, count + 1)]

    def member(self, node: bytes) -> Member:
        for member in self.members:
            if member.id == node:
                return member
        raise PeerUnknown("no such peer")

    async def deliver(self, caller: bytes, peer: bytes, method: str, raw: bytes):
        header = decode(raw)
        assert isinstance(header, dict)
        answer, _ = await self.member(peer).ledger.handlers()[method](caller, header, ())
        answer = decode(encode(answer))
        assert isinstance(answer, dict)
        reply = Answer(answer)
        self.change(reply)
        return reply


class Wire:
    """The caller port of one member."""

    def __init__(self, circle: Circle, me: bytes) -> None:
        self.circle, self.me = circle, me

    async def call(self, peer, method, header, parts: Sequence = (), *, timeout_ms=None):
        circle, raw = self.circle, encode(header)
        fate = circle.fate()
        circle.sent.append((self.me, peer, method, raw))
        if fate == "request lost" or {peer, self.me} & circle.gone:
            raise PeerSilent("no answer")
        if fate == "twice":
            await circle.deliver(self.me, peer, method, raw)
        answer = await circle.deliver(self.me, peer, method, raw)
        if fate == "answer lost":
            raise PeerSilent("no answer")
        return answer


def voucher(
    debtor: Member, creditor: Member, amount_micro: int, *, account: int = 1, number: int = 1
) -> Signed[Voucher]:
    said = Voucher(
        account=bytes([account]) * 32,
        provider=creditor.id,
        customer=debtor.id,
        number=number,
        amount_micro=amount_micro,
        count=None,
        until_ms=0,
    )
    return sign(said, debtor.key, NETWORK)


async def pay(payer: Member, payee: Member, amount_micro: int, *, before_micro: int = 0) -> int:
    """Book what a payer paid off the books; its payee agrees to whatever is shown."""
    payee.ledger.proposals.checks["off_books"] = lambda _half, _voucher: None
    said = report(payer.id, payee.id, before_micro + amount_micro, 0)
    under = Signed(said, payee.id, NETWORK, said.id, said.to_bytes())
    return await payer.ledger.proposals.book(under)


async def collect(
    creditor: Member,
    debtor: Member,
    amount_micro: int,
    *,
    of: int | None = None,
    account: int = 1,
) -> int:
    """Collect an amount under a voucher over `of` in all, by default the same."""
    signed = voucher(debtor, creditor, of if of is not None else amount_micro, account=account)
    return await creditor.ledger.collect(signed.raw)
