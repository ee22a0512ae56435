"""The key file: one line of text with mode 0600, with or without a passphrase.

    xsc-identity-1:<base32 of the seed>
    xsc-identity-1-scrypt:<base32 of salt ‖ nonce ‖ AES-256-GCM(seed)>

scrypt runs with N=2^15, r=8, p=1 (OWASP's floor for interactive use).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from xsc.base import clock, encoding, ids
from xsc.base.errors import ArgumentInvalid, IdentityInvalid
from xsc.base.text import cause
from xsc.identity.keys import SEED_BYTES, KeyPair

PLAIN = "xsc-identity-1:"
LOCKED = "xsc-identity-1-scrypt:"
_SALT_BYTES = 16
_NONCE_BYTES = 12


def _stretch(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=2**15, r=8, p=1).derive(passphrase.encode())


def to_line(key: KeyPair, entropy: clock.Entropy, passphrase: str = "") -> str:
    """Return the key file's text; the passphrase locks it, an empty one does not."""
    if not passphrase:
        return f"{PLAIN}{ids.to_text(key.seed)}\n"
    salt, nonce = entropy.token(_SALT_BYTES), entropy.token(_NONCE_BYTES)
    sealed = AESGCM(_stretch(passphrase, salt)).encrypt(nonce, key.seed, encoding.domain("keyfile"))
    return f"{LOCKED}{ids.to_text(salt + nonce + sealed)}\n"


def from_line(line: str, passphrase: str = "") -> KeyPair:
    """Return the key of a key file's text.

    Raises:
        IdentityInvalid: not a key file, a newer one, damaged, or the passphrase is wrong.
    """
    text = line.strip()
    try:
        if text.startswith(PLAIN):
            seed = ids.from_text(text.removeprefix(PLAIN))
            if len(seed) != SEED_BYTES:
                raise IdentityInvalid("the key file is cut short or too long")
            return KeyPair(seed)
        if text.startswith(LOCKED):
            sealed = ids.from_text(text.removeprefix(LOCKED))
            if not passphrase:
                raise IdentityInvalid(
                    "the key file is locked by a passphrase",
                    hint="set XSC_PASSPHRASE, or run on a terminal to be asked",
                )
            salt, rest = sealed[:_SALT_BYTES], sealed[_SALT_BYTES:]
            nonce, box = rest[:_NONCE_BYTES], rest[_NONCE_BYTES:]
            return KeyPair(
                AESGCM(_stretch(passphrase, salt)).decrypt(nonce, box, encoding.domain("keyfile"))
            )
    except ArgumentInvalid:
        raise IdentityInvalid("the key file is damaged: it is not base32 text") from None
    except (InvalidTag, ValueError):
        raise IdentityInvalid("the passphrase is wrong, or the key file is damaged") from None
    raise IdentityInvalid("that is no XSC key file", hint="it begins with 'xsc-identity-1'")


def write(path: Path, line: str) -> None:
    """Create the file with mode 0600 and put it on the disk before returning.

    Raises:
        IdentityInvalid: the file exists; an identity is never written over.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise IdentityInvalid(f"{path} exists and is not written over") from None
    with os.fdopen(handle, "w") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(path: Path, passphrase: str = "") -> KeyPair:
    """Return the key in a file.

    Raises:
        IdentityInvalid: missing, readable by others, damaged or locked.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text()
    except FileNotFoundError:
        raise IdentityInvalid(f"there is no key file at {path}") from None
    except (OSError, UnicodeDecodeError) as fault:
        raise IdentityInvalid(f"the key file {path} cannot be read: {cause(fault)}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise IdentityInvalid(
            f"the key file {path} can be read by others (mode {stat.S_IMODE(mode):04o})",
            hint=f"chmod 600 {path}",
        )
    return from_line(text, passphrase)
