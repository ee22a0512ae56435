"""A host deletes what its customer ordered by a signed record, and nothing on any other word."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from tests.unit.storage.shardstore.test_store import LOCATE, shard, wanted
from tests.unit.storage.world import NETWORK, World
from xsc.base.errors import NotAllowed, RecordInvalid, SignatureInvalid, TooLarge, XscError
from xsc.base.limits import RECORD_BYTES_MAX
from xsc.base.merkle import root_of
from xsc.base.units import held_bytes
from xsc.identity.envelope import Record, open_signed, sign
from xsc.identity.keys import KeyPair
from xsc.storage.object import messages
from xsc.storage.object.erasure import StorageShard
from xsc.storage.object.manifest import hash_of
from xsc.storage.object.messages import ObjectRecord
from xsc.terms.lease import LeaseHandle
from xsc.terms.storage_receipt import DeletionOrder, DeletionReceipt, Freed

COLUMNS = (0, 5, 255)
SEALED = b"sealed"
NOW = 1_700_000_000_000


class Loose(Record):
    """An order with any fields at all."""

    KIND: ClassVar[str] = "deletion_order"

    customer: Any = None
    host: Any = None
    locate: Any = LOCATE
    columns: Any = ()
    final: Any = False
    ordered_ms: Any = NOW


class Louder(Loose):
    """With a field that no order has."""

    reason: str = ""


class Another(Loose):
    """The same fields under another kind."""

    KIND: ClassVar[str] = "deletion_request"


class Scene:
    """Two customers of one host, which both stored the same columns of one object there."""

    async def start(self) -> Scene:
        self.world = await World(4).start()
        self.alice, self.bob, self.host, self.elsewhere = self.world.hosts
        shards = [(0, StorageShard(column, b"data", root_of(b"data"))) for column in COLUMNS]
        record = ObjectRecord(SEALED, root_of(SEALED), hash_of(SEALED))
        for customer in (self.alice, self.bob):
            lease = LeaseHandle(self.host.id, customer.lease_id(self.host.id))
            client = customer.service._client
            await client.store(lease, LOCATE, 0, shards=shards, record=record)
        self.whole_bytes = self.host.node.used_bytes // 2
        return self

    def order(self, kind: type[Record] = DeletionOrder, key: KeyPair | None = None, **change):
        fields = {
            "customer": self.alice.id,
            "host": self.host.id,
            "locate": LOCATE,
            "columns": (),
            "final": False,
            "ordered_ms": NOW,
        }
        network = change.pop("network", NETWORK)
        return sign(kind(**fields | change), key or self.alice.key, network)

    async def send(self, header, caller=None):
        handler = self.host.service.handlers()[messages.DELETE]
        answer, _ = await handler(caller or self.alice.id, header, [])
        return open_signed(
            answer["receipt"], DeletionReceipt, network=NETWORK, author=self.host.id
        ).record

    async def refuse(self, raw, caller=None, fault=XscError):
        before = dict(self.host.node.usage), dict(self.host.book.used)
        with pytest.raises(fault):
            await self.send({"order": raw}, caller)
        assert (dict(self.host.node.usage), dict(self.host.book.used)) == before
        for customer in (self.alice, self.bob):
            assert await self.columns_of(customer) == set(COLUMNS)

    async def columns_of(self, customer):
        held = await self.host.node.stat(LOCATE, 0, hash_of(SEALED))
        return {item.column for item in held.columns if item.customer == customer.id}


@pytest.fixture
async def scene():
    return await Scene().start()


async def test_an_order_deletes_all_that_its_customer_stored_and_nothing_of_others(scene):
    order = scene.order()
    receipt = await scene.send({"order": order.raw})
    lease = scene.alice.lease_id(scene.host.id)
    assert receipt.freed == (Freed(lease_id=lease, size_bytes=scene.whole_bytes),)
    assert (receipt.order, receipt.locate) == (order.id, LOCATE)
    assert (receipt.host, receipt.customer) == (scene.host.id, scene.alice.id)
    assert scene.host.book.used[lease] == 0
    assert await scene.columns_of(scene.alice) == set()
    assert await scene.columns_of(scene.bob) == set(COLUMNS)
    assert scene.host.node.used_bytes == scene.whole_bytes
    assert bytes(await scene.host.node.find(LOCATE, hash_of(SEALED))) == SEALED


async def test_an_order_of_columns_deletes_these_alone(scene):
    order = scene.order(columns=(5, 7, 255))
    receipt = await scene.send({"order": order.raw})
    assert (receipt.order, [item.size_bytes for item in receipt.freed]) == (
        order.id,
        [held_bytes(8, 2)],
    )
    assert await scene.columns_of(scene.alice) == {0}
    assert await scene.columns_of(scene.bob) == set(COLUMNS)
    held = await scene.host.node.stat(LOCATE, 0, hash_of(SEALED))
    assert {item.customer for item in held.records} == {scene.alice.id, scene.bob.id}


async def test_the_same_order_again_deletes_nothing_more(scene):
    raw = scene.order(columns=(0,)).raw
    assert (await scene.send({"order": raw})).freed
    again = await scene.send({"order": raw})
    assert again.freed == ()
    assert await scene.columns_of(scene.alice) == {5, 255}


async def test_the_last_columns_at_their_bounds_are_taken(scene):
    for change in (
        {"columns": (255,), "ordered_ms": 0},
        {"columns": tuple(range(256)), "ordered_ms": 2**63 - 1},
        {"columns": (), "final": True},
    ):
        order = scene.order(**change)
        assert (await scene.send({"order": order.raw})).order == order.id
    assert await scene.columns_of(scene.alice) == set()
    with pytest.raises(NotAllowed):
        await scene.host.node.store([shard(customer=scene.alice.id)])


@pytest.mark.parametrize(
    "change",
    [
        *({name: bytes(size)} for name in ("customer", "host", "locate") for size in (0, 31, 33)),
        *({name: None} for name in ("customer", "host", "locate", "columns", "final")),
        {"locate": "l" * 32},
        {"columns": (-1,)},
        {"columns": (256,)},
        {"columns": (2**63,)},
        {"columns": (True,)},
        {"columns": ("0",)},
        {"columns": (b"0",)},
        {"columns": ((0,),)},
        {"columns": (None,)},
        {"columns": (0,) * 257},
        {"columns": 0},
        {"columns": b"0"},
        {"final": 0},
        {"final": 1},
        {"final": "true"},
        {"ordered_ms": -1},
        {"ordered_ms": 2**63},
        {"ordered_ms": None},
        {"ordered_ms": True},
        {"ordered_ms": "0"},
    ],
    ids=str,
)
async def test_an_order_with_a_field_out_of_its_bounds_is_refused(scene, change):
    await scene.refuse(scene.order(Loose, **change).raw, fault=RecordInvalid)


async def test_every_field_of_an_order_is_needed_and_no_other_is_taken(scene):
    for name in (*DeletionOrder.model_fields,):

        class Lacking(Loose):
            def to_value(self, without=name):
                return {key: item for key, item in super().to_value().items() if key != without}

        await scene.refuse(scene.order(Lacking).raw, fault=RecordInvalid)
    await scene.refuse(scene.order(Louder).raw, fault=RecordInvalid)
    assert (await scene.send({"order": scene.order(Loose).raw})).freed


async def test_every_changed_byte_and_every_cut_is_refused(scene):
    raw = scene.order(columns=COLUMNS).raw
    for place in range(len(raw)):
        for flip in (0x01, 0x80):
            await scene.refuse(raw[:place] + bytes([raw[place] ^ flip]) + raw[place + 1 :])
        await scene.refuse(raw[:place])
    await scene.refuse(raw + b"\0")
    await scene.refuse(raw + raw)
    assert (await scene.send({"order": raw})).freed


async def test_no_other_word_deletes(scene):
    for header in ({}, {"locate": LOCATE, "final": True}, {"order": None}, {"order": "x"}):
        with pytest.raises(RecordInvalid):
            await scene.send(header)
    await scene.refuse(b"")
    await scene.refuse(bytes(RECORD_BYTES_MAX + 1), fault=TooLarge)
    await scene.refuse(scene.order(Another).raw, fault=RecordInvalid)


async def test_nobody_deletes_by_the_order_of_another_or_for_another(scene):
    alices = scene.order().raw
    for caller in (scene.bob.id, scene.elsewhere.id, scene.host.id):
        await scene.refuse(alices, caller, SignatureInvalid)
    bob = scene.bob
    signed_by_bob = scene.order(key=bob.key).raw
    await scene.refuse(signed_by_bob, fault=SignatureInvalid)
    await scene.refuse(signed_by_bob, bob.id, RecordInvalid)
    for_bob = scene.order(customer=bob.id).raw
    await scene.refuse(for_bob, fault=RecordInvalid)
    await scene.refuse(for_bob, bob.id, SignatureInvalid)


async def test_an_order_to_another_host_or_of_another_network_deletes_nothing(scene):
    for host in (scene.elsewhere.id, scene.alice.id, bytes(32)):
        await scene.refuse(scene.order(host=host).raw, fault=RecordInvalid)
    await scene.refuse(scene.order(network=b"n" * 32).raw)


async def test_a_customer_that_stored_nothing_there_deletes_nothing(scene):
    other = scene.elsewhere
    columns = scene.order(key=other.key, customer=other.id, columns=COLUMNS).raw
    assert (await scene.send({"order": columns}, other.id)).freed == ()
    for final in (False, True):
        whole = scene.order(key=other.key, customer=other.id, final=final).raw
        assert (await scene.send({"order": whole}, other.id)).freed == ()
        for customer in (scene.alice, scene.bob):
            assert await scene.columns_of(customer) == set(COLUMNS)


async def test_a_host_that_answers_with_a_receipt_for_another_order_is_reported(scene):
    kept = scene.order(columns=(0,), ordered_ms=NOW - 1)
    first = await scene.send({"order": kept.raw})
    receipts = sign(first, scene.host.key, NETWORK).raw

    def replayed(method, answer):
        if method == messages.DELETE:
            answer.header["receipt"] = receipts
        return answer

    scene.host.corrupt = replayed
    with pytest.raises(XscError, match="another order"):
        await scene.alice.service._client.delete(scene.host.id, LOCATE, columns=(0,))
    assert scene.alice.reports == [(scene.host.id, "receipt_invalid")]


async def test_a_deleted_column_is_gone_for_readers_too(scene):
    await scene.send({"order": scene.order().raw})
    found = await scene.host.node.get(LOCATE, 0, [wanted(), wanted(column=5)])
    assert [item.state for item in found] == ["ok", "ok"], "they are the other customer's"
    raw = scene.order(key=scene.bob.key, customer=scene.bob.id).raw
    await scene.send({"order": raw}, scene.bob.id)
    found = await scene.host.node.get(LOCATE, 0, [wanted(), wanted(column=5)])
    assert [item.state for item in found] == ["missing", "missing"]
