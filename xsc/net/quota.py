"""How much each caller may ask for: a second, at once, and in bytes at once.

Callers that are not known share one small bucket, so that they cannot use up
what peers have. Times are of a steady clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from xsc.base.errors import RateLimited
from xsc.base.limits import (
    PEER_REQUESTS_A_SECOND_MAX,
    PEER_REQUESTS_IN_FLIGHT_MAX,
    REQUEST_BODIES_BYTES_MAX,
    UNKNOWN_REQUESTS_A_SECOND_MAX,
)

UNKNOWN = b""
"""Stands for every caller that is not known."""


@dataclass(slots=True)
class _Bucket:
    rate: int
    tokens_milli: int
    filled_ms: int
    in_flight: int = 0

    def take(self, now_ms: int) -> None:
        gained = max(0, now_ms - self.filled_ms) * self.rate
        self.tokens_milli = min(self.rate * 1000, self.tokens_milli + gained)
        self.filled_ms = max(self.filled_ms, now_ms)
        if self.tokens_milli < 1000:
            wait_ms = -(-(1000 - self.tokens_milli) // self.rate)
            raise RateLimited(
                f"more than {self.rate} requests a second", hint=f"try again in {wait_ms} ms"
            )
        self.tokens_milli -= 1000


class Quota:
    """The buckets of all callers."""

    def __init__(
        self,
        *,
        rate: int = PEER_REQUESTS_A_SECOND_MAX,
        in_flight_max: int = PEER_REQUESTS_IN_FLIGHT_MAX,
        unknown_rate: int = UNKNOWN_REQUESTS_A_SECOND_MAX,
        bytes_max: int = REQUEST_BODIES_BYTES_MAX,
    ) -> None:
        self._rate = rate
        self._unknown_rate = unknown_rate
        self._in_flight_max = in_flight_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._buckets: dict[bytes, _Bucket] = {}

    def _bucket(self, caller: bytes, now_ms: int) -> _Bucket:
        if caller not in self._buckets:
            rate = self._rate if caller else self._unknown_rate
            self._buckets[caller] = _Bucket(rate, rate * 1000, now_ms)
        return self._buckets[caller]

    def count(self, caller: bytes, now_ms: int) -> None:
        """Take one request from a caller's bucket.

        Raises:
            RateLimited: it is empty; the hint says for how long.
        """
        self._bucket(caller, now_ms).take(now_ms)

    def enter(self, caller: bytes, size_bytes: int, now_ms: int) -> None:
        """Take one request, and hold its place and its bytes until `leave`.

        Raises:
            RateLimited: the bucket is empty, or too much is in flight; nothing is held.
        """
        bucket = self._bucket(caller, now_ms)
        if bucket.in_flight >= self._in_flight_max:
            raise RateLimited(f"more than {self._in_flight_max} requests at once")
        if self._bytes + size_bytes > self._bytes_max:
            raise RateLimited("too many bytes are under way to this node")
        bucket.take(now_ms)
        bucket.in_flight += 1
        self._bytes += size_bytes

    def leave(self, caller: bytes, size_bytes: int) -> None:
        """Give back what `enter` held."""
        self._buckets[caller].in_flight -= 1
        self._bytes -= size_bytes
        assert self._buckets[caller].in_flight >= 0
        assert self._bytes >= 0

    def forget(self, caller: bytes) -> None:
        """Drop the bucket of a peer that was removed, unless it is in use."""
        if caller in self._buckets and not self._buckets[caller].in_flight:
            del self._buckets[caller]
