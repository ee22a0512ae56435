"""The certificate that a node shows off loopback, and the contexts around it.

It is self-signed and follows from the identity alone: key, serial number and
dates are derived or fixed, and Ed25519 signs without chance. So a node that
was recovered from its key file still shows the certificate that its peers
have pinned, and nothing has to be kept. It names no node: whoever scans ports
learns nothing from it. Peers compare its fingerprint and nothing else.
"""

from __future__ import annotations

import datetime as dt
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from xsc.identity.keys import KeyPair

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
