"""How much each caller may ask for: a second, at once, and in bytes at once.

Each caller has a share, and all have a total. Callers that are not known share small
buckets, one for each source and one for all, so that they cannot use up what peers
have, nor one of them what the others have. Times are of a steady clock.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from xsc.base import limits
from xsc.base.bounded import Bounded
from xsc.base.errors import RateLimited
from xsc.net.transport.bounds import Room

Caller = bytes | str
"""The id of a known peer, or the source of whoever is not known."""


@dataclass(slots=True)
class _Bucket:
    rate: int
    tokens_milli: int
    filled_ms: int

    def take(self, now_ms: int, count: int = 1) -> None:
        gained = max(0, now_ms - self.filled_ms) * self.rate
        self.tokens_milli = min(self.rate * 1000, self.tokens_milli + gained)
        self.filled_ms = max(self.filled_ms, now_ms)
        if self.tokens_milli < 1000 * count:
            wait_ms = -(-(1000 * count - self.tokens_milli) // self.rate)
            raise RateLimited(
                f"more than {self.rate} requests a second", hint=f"try again in {wait_ms} ms"
            )
        self.tokens_milli -= 1000 * count


class Ticket:
    """The place of one request, and the bytes of its body and of its answer."""

    def __init__(self, quota: Quota, caller: Caller) -> None:
        self._quota = quota
        self._caller = caller
        self._body = 0
        self._answer = 0
        self._open = True

    def take_body(self, size_bytes: int) -> None:
        """Take room for bytes of the body that have come, before they are kept.

        Raises:
            RateLimited: there is none.
        """
        large = self._body + size_bytes > limits.SMALL_BODY_BYTES_MAX
        if not self._quota.bodies.take(self._caller, size_bytes, large=large):
            raise RateLimited("too many bytes are under way to this node")
        self._body += size_bytes

    def take_head(self, size_bytes: int, now_ms: int) -> None:
        """Count a head of that size, before it is decoded.

        Raises:
            RateLimited: too much of that in a second.
        """
        self._quota.count_head(self._caller, size_bytes, now_ms)

    def drop_body(self) -> None:
        """Give back the room of the body: nobody has it any more."""
        self._quota.bodies.give(self._caller, self._body)
        self._body = 0

    async def wait_for_answer(self, size_bytes: int) -> None:
        """Take room for an answer that will have no more than so many bytes, once there is some."""
        large = size_bytes > limits.SMALL_BODY_BYTES_MAX
        await self._quota.answers.wait(self._caller, size_bytes, large=large)
        self._answer += size_bytes

    def set_answer(self, size_bytes: int) -> None:
        """Keep as much room for the answer as it has bytes, until the ticket is given back.

        Raises:
            RateLimited: it has more than was waited for, and there is no room for that.
        """
        more = size_bytes - self._answer
        large = size_bytes > limits.SMALL_BODY_BYTES_MAX
        # The number of its requests bounds how many small ones it has: beside its large answers,
        # the same caller still learns what became of a put.
        if more > 0 and not self._quota.answers.take(
            self._caller, more, large=large, owed=not large
        ):
            raise RateLimited("too many answers of this node are not read yet")
        if more < 0:
            self._quota.answers.give(self._caller, -more)
        self._answer = size_bytes

    def close(self) -> None:
        """Give everything back, once."""
        if not self._open:
            return
        self._open = False
        self.drop_body()
        self._quota.answers.give(self._caller, self._answer)
        self._quota.leave(self._caller)


class Quota:
    """The buckets of all callers, and the room for what they send and are answered."""

    def __init__(
        self,
        *,
        rate: int = limits.PEER_REQUESTS_A_SECOND_MAX,
        share: int = limits.PEER_REQUESTS_IN_FLIGHT_MAX,
        in_flight_max: int = limits.REQUESTS_IN_FLIGHT_MAX,
        unknown_rate: int = limits.UNKNOWN_REQUESTS_A_SECOND_MAX,
        source_rate: int = limits.UNKNOWN_AN_ADDRESS_A_SECOND_MAX,
        bodies: Room | None = None,
        answers: Room | None = None,
    ) -> None:
        self._rate = rate
        self._source_rate = source_rate
        self._share = share
        self._in_flight_max = in_flight_max
        self._in_flight: Counter[Caller] = Counter()
        self._total = 0
        self._peers: dict[bytes, _Bucket] = {}
        self._sources: Bounded[str, _Bucket] = Bounded(limits.UNKNOWN_SOURCES_MAX)
        """Those that asked last: the bucket of all sources bounds them together."""
        self._everybody = _Bucket(unknown_rate, unknown_rate * 1000, 0)
        self.bodies = bodies or Room(
            limits.REQUEST_BODIES_BYTES_MAX,
            limits.REQUEST_BODIES_A_PEER_BYTES_MAX,
            small=limits.SMALL_BODIES_BYTES,
        )
        self.answers = answers or Room(
            limits.ANSWERS_BYTES_MAX,
            limits.ANSWERS_A_PEER_BYTES_MAX,
            small=limits.SMALL_BODIES_BYTES,
        )

    def in_flight(self, caller: Caller) -> int:
        """Return how many requests of a caller have a place."""
        return self._in_flight[caller]

    def count(self, source: str, now_ms: int) -> None:
        """Take one request of a caller that is not known.

        Raises:
            RateLimited: too many from there, or of all; the hint says for how long.
        """
        source = source or "?"
        bucket = self._sources.get(source)
        if bucket is None:
            bucket = _Bucket(self._source_rate, self._source_rate * 1000, now_ms)
            self._sources.put(source, bucket)
        bucket.take(now_ms)
        self._everybody.take(now_ms)

    def enter(self, caller: Caller, now_ms: int) -> Ticket:
        """Take one request, and hold its place until the ticket is given back.

        Raises:
            RateLimited: the bucket is empty, or too much is in flight; nothing is held.
        """
        known = isinstance(caller, bytes)
        share = self._share if known else limits.UNKNOWN_AN_ADDRESS_IN_FLIGHT_MAX
        if self._in_flight[caller] >= share:
            raise RateLimited(f"more than {share} requests at once")
        if self._total >= self._in_flight_max:
            raise RateLimited("too many requests are under way at this node")
        if isinstance(caller, bytes):
            bucket = self._peers.get(caller)
            if bucket is None:
                bucket = self._peers[caller] = _Bucket(self._rate, self._rate * 1000, now_ms)
            bucket.take(now_ms)
        else:
            self.count(caller, now_ms)
        self._in_flight[caller] += 1
        self._total += 1
        return Ticket(self, caller)

    def count_head(self, caller: Caller, size_bytes: int, now_ms: int) -> None:
        """Take as many requests of a peer as it takes to decode a head; the ticket does it.

        Raises:
            RateLimited: the bucket does not have so many.
        """
        more = size_bytes // limits.REQUEST_HEAD_BYTES
        if more and isinstance(caller, bytes) and caller in self._peers:
            self._peers[caller].take(now_ms, more)

    def leave(self, caller: Caller) -> None:
        """Give back a place; the ticket does it."""
        self._total -= 1
        self._in_flight[caller] -= 1
        assert self._in_flight[caller] >= 0
        if not self._in_flight[caller]:
            del self._in_flight[caller]

    def forget(self, caller: bytes) -> None:
        """Drop the bucket of a peer that was removed, unless it is in use."""
        if not self._in_flight[caller]:
            self._peers.pop(caller, None)
