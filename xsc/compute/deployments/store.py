"""What a node keeps of services, in the state database.

    services/held/<owner><name>\\0<version>       the signed deployment, whole
    services/module/<hash>                       a module
    services/log/<owner><name>\\0<number>         one request, number 8 bytes

A deployment and the module that it names are written together and synced; rows
of the log are not synced. Of what was written, everything is checked when it is
read. Numbers are big-endian, so that keys are in their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Final, get_type_hints

from xsc.api.services import Served
from xsc.base import errors, limits
from xsc.base.encoding import Value, decode, encode
from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.identity.envelope import Signed, open_signed
from xsc.terms.deployment import Deployment

_HELD: Final = b"services/held/"
_MODULE: Final = b"services/module/"
_LOG: Final = b"services/log/"
_ROW_VERSION: Final = 1

ServiceKey = tuple[bytes, str]
"""Owner and name."""


class LogRow(Served):
    """One request of a service, as the log keeps it."""

    def to_value(self) -> dict[str, Value]:
        """Return the row as plain values."""
        return {"v": _ROW_VERSION, **asdict(self)}

    @staticmethod
    def from_value(value: Value) -> LogRow:
        """Return the row that plain values describe; nothing in it is bounded.

        Raises:
            RecordInvalid: it is none, or of another version.
        """
        if not isinstance(value, dict) or value.get("v") != _ROW_VERSION:
            raise errors.RecordInvalid("this is no row of a service's log that is known here")
        named: dict[str, Any] = {name: item for name, item in value.items() if name != "v"}
        if {name: type(item) for name, item in named.items()} != _TYPES:
            raise errors.RecordInvalid("a row of a service's log has other fields than it should")
        return LogRow(**named)


_TYPES: Final = get_type_hints(Served)


def _service(key: ServiceKey) -> bytes:
    owner, name = key
    return owner + name.encode() + b"\0"


def _row_key(key: ServiceKey, number: int) -> bytes:
    return _LOG + _service(key) + number.to_bytes(8, "big")


class ServiceStore:
    """Reads and writes them."""

    def __init__(self, state: KeyValue, network: bytes) -> None:
        self._state = state
        self._network = network

    # Deployments

    def deployments(self) -> list[Signed[Deployment]]:
        """Return all that are kept.

        Raises:
            StoreDamaged: one fails its check.
        """
        found = []
        for _, raw in self._state.scan(_HELD, prefix_end(_HELD)):
            try:
                signed = open_signed(
                    raw, Deployment, network=self._network, size_max=limits.SERVICE_RECORD_BYTES_MAX
                )
            except (errors.RecordInvalid, errors.SignatureInvalid, errors.TooLarge) as fault:
                raise errors.StoreDamaged(
                    f"a deployment that was kept is damaged: {fault.message}"
                ) from None
            found.append(signed)
        return found

    def keep(
        self, signed: Signed[Deployment], module: bytes | None, dropped: Iterable[str]
    ) -> None:
        """Keep a deployment and its new module, and drop other versions: all or nothing."""
        record = signed.record
        key = (record.owner, record.name)
        changes: list[Change] = []
        if module is not None:
            changes.append((_MODULE + record.module, module))
        changes.append((self._held(key, record.version), signed.raw))
        changes += [(self._held(key, version), None) for version in dropped]
        self._state.write(changes, sync=True)

    def drop(self, key: ServiceKey, versions: Iterable[str]) -> None:
        """Drop a service and its log."""
        changes: list[Change] = [(self._held(key, version), None) for version in versions]
        start = _LOG + _service(key)
        changes += [(found, None) for found, _ in self._state.scan(start, prefix_end(start))]
        self._state.write(changes, sync=True)

    def _held(self, key: ServiceKey, version: str) -> bytes:
        return _HELD + _service(key) + version.encode()

    # Modules

    def module(self, digest: bytes) -> bytes | None:
        """Return a module, or None.

        Raises:
            StoreDamaged: what is there is not the module.
        """
        module = self._state.get(_MODULE + digest)
        if module is None:
            return None
        if hashlib.sha256(module).digest() != digest:
            raise errors.StoreDamaged("the module of a service is damaged", hint="deploy it again")
        return module

    def modules(self) -> dict[bytes, int]:
        """Return the size in bytes of each module."""
        found = self._state.scan(_MODULE, prefix_end(_MODULE))
        return {key[len(_MODULE) :]: len(module) for key, module in found}

    def drop_module(self, digest: bytes) -> None:
        """Drop a module."""
        self._state.write([(_MODULE + digest, None)], sync=False)

    # The log

    def add(self, key: ServiceKey, rows: Iterable[LogRow]) -> None:
        """Add rows to a service's log, unsynced."""
        changes: list[Change] = [
            (_row_key(key, row.number), encode(row.to_value())) for row in rows
        ]
        self._state.write(changes, sync=False)

    def sync(self) -> None:
        """Have all that was written before outlive a loss of power."""
        self._state.write([], sync=True)

    def cut(self, key: ServiceKey, upto: int) -> int:
        """Drop the rows up to a number, that one included; return how many there were."""
        stop = _row_key(key, upto + 1)
        found = [key for key, _ in self._state.scan(_LOG + _service(key), stop)]
        self._state.write([(each, None) for each in found], sync=False)
        return len(found)

    def cut_oldest(self, key: ServiceKey, count: int) -> None:
        """Drop that many rows, the oldest."""
        start = _LOG + _service(key)
        found: list[Change] = []
        for each, _ in self._state.scan(start, prefix_end(start)):
            if len(found) == count:
                break
            found.append((each, None))
        self._state.write(found, sync=False)

    def numbers(self, key: ServiceKey) -> tuple[int, int]:
        """Return how many rows a service has, and the number of the last one, 0 without any."""
        start = _LOG + _service(key)
        count, last = 0, 0
        for found, _ in self._state.scan(start, prefix_end(start)):
            count, last = count + 1, int.from_bytes(found[-8:], "big")
        return count, last

    def rows(
        self, key: ServiceKey, *, after: int = 0, newest: bool = False, most: int, size_max: int
    ) -> list[LogRow]:
        """Return rows after a number in order: the oldest `most` of them, or the newest.

        Args:
            key: of the service.
            after: the number after which to begin.
            newest: count from the end.
            most: how many at most.
            size_max: bytes that they may take together; one row is returned in any case.

        Raises:
            StoreDamaged: a row fails its check.
        """
        start = _LOG + _service(key)
        found: list[LogRow] = []
        size = 0
        for _, raw in self._state.scan(_row_key(key, after + 1), prefix_end(start), reverse=newest):
            size += len(raw)
            if len(found) == most or (found and size > size_max):
                break
            try:
                found.append(LogRow.from_value(decode(raw, size_max=limits.RECORD_BYTES_MAX)))
            except (errors.RecordInvalid, errors.TooLarge) as fault:
                raise errors.StoreDamaged(f"a service's log is damaged: {fault.message}") from None
        return found[::-1] if newest else found
