"""Says where this node is: its signed address record, and when there is a new one."""

from __future__ import annotations

from collections.abc import Sequence

from xsc.base import encoding, keyvalue
from xsc.base.errors import StoreDamaged
from xsc.base.fields import take_int
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, sign
from xsc.net.peers.roster import AddressRecord
from xsc.net.transport.addresses import is_loopback, split
from xsc.net.transport.port import Transport

OWN = b"net/self"


class OwnAddress:
    """The address record of this node.

    Args:
        context: the node's values.
        transport: names the addresses of this node.
        store: keeps the number of the last record.
        name: what this node calls itself.
        advertise: addresses to tell others instead of the transport's own.
        introducible: whether this node takes introductions, and may be introduced.
    """

    def __init__(
        self,
        context: Context,
        *,
        transport: Transport,
        store: keyvalue.KeyValue,
        name: str,
        advertise: Sequence[str],
        introducible: bool,
    ) -> None:
        self._context = context
        self._transport = transport
        self._store = store
        self.name = name
        self.advertise = tuple(advertise)
        self.introducible = introducible
        self._numbered: tuple[str, ...] = ()
        """The addresses that have the last number."""
        self._seq = 0

    def begin(self) -> None:
        """Number the record anew, also where nothing has changed since the last start.

        A home that was restored may have been elsewhere in the meantime: what its peers have of
        then must not count as newer.
        """
        self._numbered = self.addresses()
        self._seq = self._next_seq()

    def _next_seq(self) -> int:
        """Return the number of the next address record: above all earlier ones."""
        raw = self._store.get(OWN)
        value = None if raw is None else encoding.decode(raw)
        if value is not None and (not isinstance(value, dict) or value.get("v") != 1):
            raise StoreDamaged("this node's own entry in the state database is of no known form")
        seq = max(self._context.clock.now_ms(), 0 if value is None else take_int(value, "seq") + 1)
        self._store.write([(OWN, encoding.encode({"v": 1, "seq": seq}))], sync=True)
        return seq

    def addresses(self) -> tuple[str, ...]:
        """Return where others are told to reach this node; on loopback only if it is there."""
        found = self.advertise or self._transport.addresses()
        if self._transport.fingerprint is None:
            return found
        return tuple(address for address in found if not is_loopback(split(address)[0]))

    def record(self) -> Signed[AddressRecord]:
        """Return the record, signed; numbered anew where the addresses are others than before."""
        if self.addresses() != self._numbered:
            self.begin()
        record = AddressRecord(
            name=self.name,
            addresses=self._numbered,
            fingerprint=self._transport.fingerprint,
            introducible=self.introducible,
            seq=self._seq,
        )
        return sign(record, self._context.key, self._context.network)
