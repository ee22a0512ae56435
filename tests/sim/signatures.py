"""Signatures that were made here are known to fit: a world's nodes do not compute that again.

To check a signature costs a third of all the time of a simulation. What a key of this process
signed fits, and that is remembered; every other signature is checked as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

from xsc.identity import keys

REMEMBERED_MAX = 100_000


@contextmanager
def remembered() -> Iterator[None]:
    """Check only signatures that no key of this process made."""
    sign, public = keys.KeyPair.sign, keys._public
    made: dict[bytes, tuple[bytes, bytes]] = {}

    class Author:
        def __init__(self, node_id: bytes) -> None:
            self._node_id = node_id
            self._public = public(node_id)

        def verify(self, signature: bytes, message: bytes) -> None:
            if made.get(signature) != (self._node_id, sha256(message).digest()):
                self._public.verify(signature, message)

    def noted(self: keys.KeyPair, message: bytes) -> bytes:
        signature = sign(self, message)
        if len(made) == REMEMBERED_MAX:
            made.clear()
        made[signature] = (self.node_id, sha256(message).digest())
        return signature

    keys.KeyPair.sign, keys._public = noted, Author
    try:
        yield
    finally:
        keys.KeyPair.sign, keys._public = sign, public
