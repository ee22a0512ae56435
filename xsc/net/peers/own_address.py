"""Says where this node is: its signed address record, and when there is a new one."""

from __future__ import annotations

from collections.abc import Sequence

from xsc.identity.context import Context
from xsc.identity.envelope import Signed, sign
from xsc.net.peers.roster import AddressRecord, number_row, read_number
from xsc.net.transport.addresses import is_loopback, split
from xsc.net.transport.port import Transport

OWN = b"net/self"


class OwnAddress:
    """The address record of this node.

    Args:
        context: the node's values.
        transport: names the addresses of this node.
        name: what this node calls itself.
        advertise: addresses to tell others instead of the transport's own.
        introducible: whether this node takes introductions, and may be introduced.
    """

    def __init__(
        self,
        context: Context,
        *,
        transport: Transport,
        name: str,
        advertise: Sequence[str],
        introducible: bool,
    ) -> None:
        self._context = context
        self._transport = transport
        self._store = context.state
        self.name = name
        self.advertise = tuple(advertise)
        self.introducible = introducible
        self._numbered: tuple[str, ...] = ()
        """The addresses that have the last number."""
        self._seq = 0

    def begin(self) -> None:
        """Number the record above all earlier ones, also where nothing has changed.

        A home that was restored may have been elsewhere in the meantime: what its peers have of
        then must not count as newer.
        """
        raw = self._store.get(OWN)
        least = 0 if raw is None else read_number(raw, OWN) + 1
        self._numbered = self.addresses()
        self._seq = max(self._context.clock.now_ms(), least)
        self._store.write([number_row(OWN, self._seq)], sync=True)

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
