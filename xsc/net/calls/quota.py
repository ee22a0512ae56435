"""How much each caller may ask for: units and synced bytes in time, requests and bytes at once.

Each caller has a share, and all have a total. What a call costs is in the table of
`xsc.net.calls.costs`. Callers that are not known share small rates, one for each source and one
for all, so that they cannot use up what peers have, nor one of them what the others have.
Times are of a steady clock.
"""

from __future__ import annotations

from xsc.base import errors, limits, tally
from xsc.base.room import Hold, Room
from xsc.base.units import ceil_div
from xsc.net.calls.costs import COSTS, OTHER, Spending

SYNCED_BYTES_MAX = 16 * limits.SYNCED_A_PEER_BYTES_MAX
"""Bytes that all peers may have written and synced within SYNCED_MS, where nobody pays for it."""
REQUESTS_IN_FLIGHT_MAX = 1_024
"""Requests of all callers that are read, answered or written at once."""
UNKNOWN_REQUESTS_A_SECOND_MAX = 100
"""Requests of all callers together that are not known."""
UNKNOWN_AN_ADDRESS_A_SECOND_MAX = 50
"""The same, of one source: an IPv4 address, or the first 64 bits of one of IPv6."""
UNKNOWN_AN_ADDRESS_IN_FLIGHT_MAX = 8
UNKNOWN_IN_FLIGHT_MAX = 128
"""Of all callers together that are not known."""
REQUEST_BODIES_BYTES_MAX = 288 * limits.MIB
"""Bodies of requests that a node holds at once, of all callers; counted as they arrive."""
REQUEST_BODIES_A_PEER_BYTES_MAX = 2 * limits.PEER_BODY_BYTES_MAX
"""The same, of one peer."""
ANSWERS_BYTES_MAX = 12 * limits.PEER_BODY_BYTES_MAX + limits.SMALL_BODIES_BYTES
"""Answers to all peers, from before they are made until they are written."""
ANSWERS_A_PEER_BYTES_MAX = 4 * limits.PEER_BODY_BYTES_MAX
"""The same, to one peer."""
assert REQUEST_BODIES_BYTES_MAX >= 4 * REQUEST_BODIES_A_PEER_BYTES_MAX + limits.SMALL_BODIES_BYTES
assert REQUEST_BODIES_A_PEER_BYTES_MAX >= limits.PEER_BODY_BYTES_MAX
assert ANSWERS_BYTES_MAX >= 3 * ANSWERS_A_PEER_BYTES_MAX + limits.SMALL_BODIES_BYTES
assert limits.PEER_REQUESTS_IN_FLIGHT_MAX * 8 <= REQUESTS_IN_FLIGHT_MAX

Caller = bytes | str
"""The id of a known peer, or the source of whoever is not known."""
_ALL = ""
"""The one holder of what all callers have together."""
_HALF = limits.PEER_REQUESTS_A_SECOND_MAX * limits.REQUEST_UNITS // 2
"""What work on what a peer has told leaves of its units for its requests."""


def _refuse(wait_ms: int) -> None:
    """Return if nobody has to wait.

    Raises:
        RateLimited: one has to; the hint says for how long.
    """
    if wait_ms:
        raise errors.RateLimited(
            "more than the share of one caller, or of all, in so short a time",
            hint=f"try again in {wait_ms} ms",
            retry_after_s=min(ceil_div(wait_ms, 1000), limits.RETRY_AFTER_S_MAX),
        )


def _take(share: tally.Rate, total: tally.Rate, holder: Caller, amount: int, now_ms: int) -> None:
    """Take of a share and of what all have, or of neither.

    Raises:
        RateLimited: one has too little; the hint says for how long.
    """
    _refuse(max(share.wait_ms(holder, amount, now_ms), total.wait_ms(_ALL, amount, now_ms)))
    share.note(holder, amount, now_ms)
    total.note(_ALL, amount, now_ms)


class Ticket:
    """The place of one request, the bytes of its body and of its answer, and what it costs.

    Args:
        quota: of all callers.
        caller: whose request it is.
        method: that it calls.
        place: where it has a place, which is given back; None where another ticket has that.
    """

    def __init__(self, quota: Quota, caller: Caller, method: str, place: Room | None) -> None:
        self._quota = quota
        self._caller = caller
        self._method = method
        self._cost = COSTS.get(method, OTHER)
        self._place = place
        self._body = Hold(quota.bodies, caller)
        self._answer = 0

    def take_body(self, size_bytes: int, now_ms: int) -> None:
        """Charge bytes of the body that have come, and take room for them before they are kept.

        They are owed, whatever becomes of the request.

        Raises:
            RateLimited: there is none.
        """
        before = self._body.size_bytes
        units = self._cost.body(before + size_bytes) - self._cost.body(before)
        self._quota.charge(self._caller, self._method, now_ms, units, made=True)
        if not self._body.take(size_bytes):
            raise errors.RateLimited("too many bytes are under way to this node")

    def charge_content(self, head_bytes: int, body_bytes: int, now_ms: int) -> None:
        """Charge what a call brings, before its head is decoded.

        Raises:
            RateLimited: it is too much in so short a time.
        """
        units, synced = self._cost.content(head_bytes, body_bytes)
        # What came as the body of this request was charged as it came.
        units -= self._cost.body(self._body.size_bytes)
        self._quota.charge(self._caller, self._method, now_ms, units, synced)

    def drop_body(self) -> None:
        """Give back the room of the body: nobody has it any more."""
        self._body.give()

    async def wait_for_answer(self, size_bytes: int) -> None:
        """Take room for an answer that will have no more than so many bytes, once there is some."""
        large = size_bytes > limits.SMALL_BODY_BYTES_MAX
        await self._quota.answers.wait(self._caller, size_bytes, large=large)
        self._answer += size_bytes

    def set_answer(self, size_bytes: int, now_ms: int) -> None:
        """Charge the answer, and keep room for as many bytes until the ticket is given back.

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
            raise errors.RateLimited("too many answers of this node are not read yet")
        if more < 0:
            self._quota.answers.give(self._caller, -more)
        self._answer = size_bytes
        units = self._cost.body(size_bytes)
        self._quota.charge(self._caller, self._method, now_ms, units, made=True)

    def close(self) -> None:
        """Give everything back, once."""
        if self._place is None:
            return
        self.drop_body()
        self._quota.answers.give(self._caller, self._answer)
        self._place.give(self._caller, 1)
        self._place = None


class Quota:
    """What all callers may have, and what they have of it."""

    def __init__(self) -> None:
        self.units = tally.Rate(limits.PEER_REQUESTS_A_SECOND_MAX * limits.REQUEST_UNITS, 1000)
        self._synced = tally.Rate(limits.SYNCED_A_PEER_BYTES_MAX, limits.SYNCED_MS)
        self._all_synced = tally.Rate(SYNCED_BYTES_MAX, limits.SYNCED_MS)
        self.sources = tally.Rate(UNKNOWN_AN_ADDRESS_A_SECOND_MAX, 1000)
        self.unknown = tally.Rate(UNKNOWN_REQUESTS_A_SECOND_MAX, 1000)
        self.places = Room(REQUESTS_IN_FLIGHT_MAX, limits.PEER_REQUESTS_IN_FLIGHT_MAX)
        self._unknown_places = Room(UNKNOWN_IN_FLIGHT_MAX, UNKNOWN_AN_ADDRESS_IN_FLIGHT_MAX)
        small = limits.SMALL_BODIES_BYTES
        self.bodies = Room(REQUEST_BODIES_BYTES_MAX, REQUEST_BODIES_A_PEER_BYTES_MAX, small=small)
        self.answers = Room(ANSWERS_BYTES_MAX, ANSWERS_A_PEER_BYTES_MAX, small=small)
        self.spending = Spending()

    def left(self, peer: bytes, now_ms: int) -> tuple[int, int]:
        """Return the units and synced bytes that a peer has left; less than nothing is owed."""
        return self.units.left(peer, now_ms), self._synced.left(peer, now_ms)

    def pause_ms(self, peer: bytes, now_ms: int) -> int:
        """Return how long work on what a peer has told waits: half is left for its requests."""
        return self.units.wait_ms(peer, _HALF, now_ms)

    def count(self, source: str, now_ms: int) -> None:
        """Take one request of a caller that is not known.

        Raises:
            RateLimited: too many from there, or of all; the hint says for how long.
        """
        _take(self.sources, self.unknown, source, 1, now_ms)

    def enter(self, caller: Caller, now_ms: int, method: str = "") -> Ticket:
        """Take one request, and hold its place until the ticket is given back.

        Raises:
            RateLimited: it is too much at once, or in so short a time; nothing is held.
        """
        places = self.places if isinstance(caller, bytes) else self._unknown_places
        if not places.take(caller, 1):
            raise errors.RateLimited("too many requests at once, of this caller or of all")
        try:
            if isinstance(caller, bytes):
                self.charge(caller, method, now_ms, COSTS.get(method, OTHER).base)
            else:
                self.count(caller, now_ms)
        except errors.RateLimited:
            places.give(caller, 1)
            raise
        return Ticket(self, caller, method, places)

    def charge(
        self,
        caller: Caller,
        method: str,
        now_ms: int,
        units: int,
        synced: int = 0,
        *,
        made: bool = False,
    ) -> None:
        """Charge a peer; whoever is not known is bounded by the number of its requests.

        Args:
            caller: who.
            method: the call that costs it.
            now_ms: the time now.
            units: how much.
            synced: bytes that are written and synced.
            made: whether the work is done: then it is owed, whatever is left.

        Raises:
            RateLimited: it is too much in so short a time.
        """
        if not isinstance(caller, bytes) or not (units or synced):
            return
        if not made:
            _refuse(self.units.wait_ms(caller, units, now_ms))
        if synced:
            _take(self._synced, self._all_synced, caller, synced, now_ms)
        self.units.note(caller, units, now_ms)
        self.spending.add(caller, method, now_ms, units=units)
