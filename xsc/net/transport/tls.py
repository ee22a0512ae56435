"""Makes the TLS certificate of a node, and accepts TLS connections. Loopback needs no TLS.

The certificate is self-signed and derived from the identity alone: key, serial number
and dates are derived or fixed, and Ed25519 signatures are deterministic. So it is not
stored, and a node that was recovered from its key file presents the certificate that its
peers have pinned. It does not name the node, so a port scan learns nothing from it.
Peers compare only its fingerprint.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from xsc.base.limits import PEER_CONNECT_TIMEOUT_MS
from xsc.identity.keys import KeyPair
from xsc.net.transport.bounds import Gate

_BEGIN = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
_END = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
"""RFC 5280's date for "no end": the pin is the only thing that counts."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate with its private key, both as PEM, and what peers pin."""

    certificate: bytes
    private_key: bytes
    fingerprint: bytes
    """SHA-256 of the certificate in DER form."""


def certificate_of(key: KeyPair) -> Certificate:
    """Return the certificate of an identity: always the same one."""
    private = Ed25519PrivateKey.from_private_bytes(key.derive("tls"))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "xsc")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(int.from_bytes(key.derive("tls-serial", 16), "big") | 1)
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, None)
    )
    return Certificate(
        certificate.public_bytes(Encoding.PEM),
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        certificate.fingerprint(hashes.SHA256()),
    )


def server_context(certificate: Certificate) -> ssl.SSLContext:
    """Return a context that serves TLS 1.3 with the certificate.

    The ssl module reads keys from files only: this one lives for the call, with mode 0600.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    with tempfile.TemporaryDirectory(prefix="xsc-tls-") as folder:
        file = Path(folder) / "certificate.pem"
        file.touch(mode=0o600)
        file.write_bytes(certificate.private_key + certificate.certificate)
        context.load_cert_chain(file)
    return context


class Handshake(asyncio.Protocol):
    """A connection before it is served with TLS, counted before its handshake begins.

    asyncio's own TLS server reports a connection only after the handshake, so the number of
    unfinished handshakes would be unlimited.

    Args:
        context: of the server.
        inner: makes the protocol behind TLS, which may be given data before its transport.
        gate: counts.
        tasks: has those that are under way.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        inner: Callable[[], asyncio.Protocol],
        gate: Gate,
        tasks: set[asyncio.Task[None]],
    ) -> None:
        self._context = context
        self._inner = inner
        self._gate = gate
        self._tasks = tasks
        self._raw: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let a connection in and have the handshake made."""
        assert isinstance(transport, asyncio.Transport)
        self._raw = transport
        if not self._gate.enter(transport):
            return
        # Neither side of TLS keeps what the reader does not take (`xsc.net.transport.http`).
        transport.set_write_buffer_limits(high=1, low=0)
        # What comes is the handshake's.
        transport.pause_reading()
        task = asyncio.get_running_loop().create_task(self._shake(transport))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (each end is one)
        """End before TLS has begun."""
        if self._raw is not None:
            self._gate.leave(self._raw)

    async def _shake(self, raw: asyncio.Transport) -> None:
        inner = self._inner()
        try:
            secured = await asyncio.get_running_loop().start_tls(
                raw,
                inner,
                self._context,
                server_side=True,
                ssl_handshake_timeout=PEER_CONNECT_TIMEOUT_MS / 1000,
            )
        except (OSError, asyncio.CancelledError):
            # No TLS, too slow, evicted or gone: nobody to tell anything.
            secured = None
        # The same connection, from now on under the transport that it is served by.
        self._gate.leave(raw)
        if secured is None or secured.is_closing():
            raw.abort()
        else:
            inner.connection_made(secured)
