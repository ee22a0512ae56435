"""Who is logged in: codes that are good once, sessions, and what a request must show.

Everything is in memory: a node that starts again knows nobody, and a new link takes a second.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from xsc.base.clock import Clock, Entropy
from xsc.base.errors import NotAllowed
from xsc.base.ids import to_text

CODE_MS: Final = 60_000
"""How long the code of a link is good."""
IDLE_MS: Final = 24 * 3_600_000
"""After so long without a request a session is over."""
SESSIONS_MAX: Final = 16
"""Sessions, and codes that wait; one more ends the one that was used longest ago."""
SECRET_BYTES: Final = 32
BASE_BYTES: Final = 15

_HOST: Final = re.compile(r"([0-9.]+|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")
"""An address, and perhaps a port."""


@dataclass(slots=True)
class Session:
    """One browser that is logged in."""

    base: str
    """What the paths of its pages begin with. Cookies know no port: a browser would show one of `/`
    to every server of this machine that it is led to."""
    csrf: str
    """What each form and each POST of its pages carries."""
    used_ms: int
    streams: list[object] = field(default_factory=list)
    """Its open event streams, the oldest first."""


class Sessions:
    """The sessions of one node, and the codes that open new ones."""

    def __init__(self, clock: Clock, entropy: Entropy) -> None:
        self._clock = clock
        self._entropy = entropy
        self._codes: dict[bytes, int] = {}
        """By digest, when each was made; the oldest first."""
        self._sessions: dict[bytes, Session] = {}
        """By the digest of their token; the one that was used longest ago first."""

    def _secret(self) -> str:
        return to_text(self._entropy.token(SECRET_BYTES))

    def new_code(self) -> str:
        """Return a code that logs one browser in, within CODE_MS."""
        code = self._secret()
        self._codes[_digest(code)] = self._clock.monotonic_ms()
        if len(self._codes) > SESSIONS_MAX:
            del self._codes[next(iter(self._codes))]
        return code

    def open(self, code: str) -> str:
        """Spend a code, and return the token of a new session.

        Raises:
            NotAllowed: the code was spent, is too old, or was never made.
        """
        made_ms = self._codes.pop(_digest(code), None)
        now_ms = self._clock.monotonic_ms()
        if made_ms is None or now_ms - made_ms > CODE_MS:
            raise NotAllowed(
                "this link was used already, or is older than a minute",
                hint="xsc dashboard prints a new one",
            )
        token = self._secret()
        base = f"/s/{to_text(self._entropy.token(BASE_BYTES))}"
        self._sessions[_digest(token)] = Session(base, self._secret(), now_ms)
        if len(self._sessions) > SESSIONS_MAX:
            self._end(next(iter(self._sessions)))
        return token

    def of(self, token: str) -> Session | None:
        """Return the session of a token, and note that it is used."""
        key, now_ms = _digest(token), self._clock.monotonic_ms()
        found = self._sessions.get(key)
        if found is None:
            return None
        if now_ms - found.used_ms > IDLE_MS:
            self._end(key)
            return None
        found.used_ms = now_ms
        self._sessions[key] = self._sessions.pop(key)
        return found

    def close(self, token: str) -> None:
        """End a session."""
        self._end(_digest(token))

    def _end(self, key: bytes) -> None:
        if (found := self._sessions.pop(key, None)) is not None:
            found.streams.clear()


def _digest(secret: str) -> bytes:
    # A dictionary compares byte by byte, and tells by its time how much of a secret is right.
    return hashlib.sha256(secret.encode(errors="replace")).digest()


def check_host(headers: Mapping[str, str]) -> str:
    """Return what a request names as its host, which is an address of this machine, at any port.

    A name that points here is not enough: whoever owns it may write the pages that ask. `localhost`
    may lead to another address of loopback, where somebody else listens.

    Raises:
        NotAllowed: it is another one.
    """
    host = headers.get("Host", "")
    if (found := _HOST.fullmatch(host)) is not None:
        name = found[1].strip("[]")
        with suppress(ValueError):
            if ipaddress.ip_address(name).is_loopback:
                return host
    raise NotAllowed(
        "the dashboard answers under 127.0.0.1 and [::1], and under no name",
        hint="from elsewhere, forward a port: ssh -L PORT:127.0.0.1:PORT HOST",
    )


def check_origin(headers: Mapping[str, str], host: str, *, stream: bool = False) -> None:
    """Check that one of our own pages asks: no other site, and no other port of this machine.

    Args:
        headers: of the request.
        host: what it names as its host.
        stream: whether it is for events: browsers send no Origin with those.

    Raises:
        NotAllowed: another page asks, or the request does not say which.
    """
    origin = headers.get("Origin", f"http://{host}" if stream else "")
    if origin != f"http://{host}" or headers.get("Sec-Fetch-Site") != "same-origin":
        raise NotAllowed("only the dashboard's own pages may ask for this")


def check_reader(headers: Mapping[str, str]) -> None:
    """Check that a page is read by one of our own, or that somebody opens it.

    Raises:
        NotAllowed: another page reads it, be it to see how long that takes.
    """
    if headers.get("Sec-Fetch-Site", "none") not in {"same-origin", "none"}:
        raise NotAllowed("another page may not lead here", hint="open the page by itself")


def check_csrf(session: Session, given: str) -> None:
    """Check what a POST carries.

    Raises:
        NotAllowed: it is not what the session's pages have.
    """
    if not hmac.compare_digest(session.csrf.encode(), given.encode(errors="replace")):
        raise NotAllowed("the page is of an earlier session", hint="load it again")
