"""Sends one signed request to a peer and opens the answer."""

from __future__ import annotations

from collections.abc import Sequence

from xsc.base import encoding, errors, limits, merkle, turns
from xsc.identity.context import Context
from xsc.net.calls import costs, problems, signing
from xsc.net.calls.frame import Reply, head_of, pack_head, unpack
from xsc.net.peers.roster import PeerInfo
from xsc.net.transport.port import Dropped, RawRequest, RawResponse, Traffic, Transport

ROOT = "/peer/v1/"


class RequestSender:
    """Sends requests to the addresses of a peer until one answers.

    Args:
        context: the node's values.
        transport: carries the requests.
        work: decodes large heads of answers.
        traffic: counts bodies.
    """

    def __init__(
        self, context: Context, *, transport: Transport, work: turns.PeerWork, traffic: Traffic
    ) -> None:
        self._context = context
        self._transport = transport
        self._work = work
        self._traffic = traffic
        self.answered_at: dict[bytes, str] = {}
        """The address at which each peer answered last."""

    async def ask(
        self,
        info: PeerInfo,
        method: str,
        header: dict[str, encoding.Value],
        parts: Sequence[merkle.Part],
        timeout_ms: int,
    ) -> Reply:
        """Return a peer's answer; its parts are not verified.

        Raises:
            PeerSilent: no address answers in time.
            TooLarge: the header, or that of the answer, is over the bound of the method.
            FrameInvalid: the answer is malformed.
            XscError: what the peer answered with.
        """
        cost = costs.COSTS.get(method, costs.OTHER)
        head = pack_head(header, parts, size_max=cost.asked)
        body = [head, *(part.data for part in parts)]
        deadline_ms = self._context.clock.monotonic_ms() + timeout_ms
        reason = "it has told no address"
        # The address that answered last comes first; a dropped connection is tried once
        # more, because kept ones go stale.
        last = self.answered_at.get(info.node_id)
        for address in sorted(info.addresses, key=lambda address: address != last):
            for _ in range(2):
                left_ms = deadline_ms - self._context.clock.monotonic_ms()
                if left_ms <= 0:
                    break
                self._traffic.sent_bytes += sum(map(len, body))
                try:
                    response = await self._transport.send(
                        address,
                        info.fingerprint,
                        self._signed(info.node_id, method, head, body),
                        left_ms,
                    )
                except Dropped:
                    reason = "it dropped the connection"
                    continue
                except errors.PeerSilent as silent:
                    reason = silent.message
                    break
                self.answered_at[info.node_id] = address
                self._traffic.received_bytes += sum(map(len, response.body))
                return await self._opened(info, response, cost.answered)
        raise errors.PeerSilent(
            f"the peer {info.name} does not answer: {reason}",
            hint="try again later; `xsc peer ls` shows who answers",
        )

    def _signed(
        self, to: bytes, method: str, head: bytes, body: Sequence[bytes | memoryview]
    ) -> RawRequest:
        path = ROOT + method
        headers = signing.sign_request(
            self._context.key,
            network=self._context.network,
            to=to,
            method="POST",
            path=path,
            head=head,
            created_ms=self._context.clock.now_ms(),
            entropy=self._context.entropy.token(limits.NONCE_BYTES - signing.STAMP_BYTES),
        )
        return RawRequest("POST", path, headers, body)

    async def _opened(self, info: PeerInfo, response: RawResponse, size_max: int) -> Reply:
        body = memoryview(response.body[0]) if response.body else memoryview(b"")
        if response.status != 200:
            raise problems.error_of(response.status, body, info.name)
        size = len(head_of(body, size_max=size_max) or b"")
        frame = await self._work.run(info.node_id, size, unpack, body, size_max=size_max)
        return Reply(frame.header, [memoryview(part.data) for part in frame.parts])
