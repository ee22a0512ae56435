"""Keeps the alerts of a node, and tells the operator's targets of them.

    monitor/alerts      the alerts that were raised, as the state database has them

A target is a program (`exec:PROGRAM ARGUMENT …`, started without a shell) or a URL. Either gets one
JSON document: the program on its standard input, the URL in a POST.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shlex
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import aiohttp

from xsc.api.monitor import Measures, Told
from xsc.base.errors import NotFound, RecordInvalid, StoreDamaged, UnavailableError, XscError
from xsc.base.ids import to_text
from xsc.base.limits import KIB, MIB
from xsc.identity.context import Context
from xsc.identity.envelope import Record
from xsc.monitor import conditions
from xsc.monitor.conditions import Alert

STATE: Final = b"monitor/alerts"
EXEC: Final = "exec:"
EXEC_MS_MAX: Final = 30_000
"""How long a program may run."""
URL_MS_MAX: Final = 10_000
"""How long a URL may take to answer."""
ANSWER_BYTES_MAX: Final = 64 * KIB
TOLD_AT_ONCE: Final = 16
"""Alerts that targets are told of at once; of the others at the next look."""
ALERTS_BYTES_MAX: Final = 4 * MIB
"""More than all kinds about all peers take."""


class Raised(Record):
    """The alerts that were raised, as they are kept."""

    alerts: tuple[Alert, ...]


class Alerts:
    """The alerts of one node."""

    def __init__(
        self, context: Context, targets: Sequence[str], name_of: Callable[[bytes], str]
    ) -> None:
        """Read what was kept.

        Args:
            context: the node's values.
            targets: who is told.
            name_of: returns what a node is called here.

        Raises:
            StoreDamaged: it cannot be read.
        """
        self._node = context.key.node_id
        self._name_of = name_of
        self._commit = context.commit
        self._clock = context.clock
        self._log = context.log
        self._targets = {_hashed(target): target for target in targets}
        self._failing = False
        self._kept = Raised(alerts=())
        raw = context.state.get(STATE)
        if raw is not None:
            try:
                self._kept = Raised.from_bytes(raw, size_max=ALERTS_BYTES_MAX)
            except RecordInvalid as fault:
                raise StoreDamaged(f"the alerts are damaged: {fault.message}") from None
        self._alerts = {alert.key: alert for alert in self._kept.alerts}

    def shown(self) -> list[Alert]:
        """Return what the operator has not acknowledged, the newest last."""
        shown = [alert for alert in self._alerts.values() if alert.is_shown]
        return sorted(shown, key=lambda alert: alert.since_ms)

    async def acknowledge(self, key: str | None = None) -> int:
        """Acknowledge one alert, or all that are shown; return how many.

        Raises:
            NotFound: none of that key is shown.
        """
        found = [each for each in self.shown() if key in (None, each.key)]
        if key is not None and not found:
            raise NotFound("no such alert is shown", hint="`xsc node alerts` lists them")
        for each in found:
            self._alerts[each.key] = each.model_copy(update={"acknowledged": True})
        await self._keep()
        return len(found)

    async def look(self, measures: Measures) -> None:
        """Raise and end alerts as the measures of now call for, and tell of those raised."""
        now_ms = self._clock.now_ms()
        found = conditions.conditions(measures, now_ms)
        before = self._alerts
        self._alerts = conditions.step(before.values(), found, now_ms)
        for key, alert in self._alerts.items():
            if alert.raised and not (key in before and before[key].raised):
                self._log.warning(
                    "node.alert", kind=alert.kind, peer=alert.peer or None, says=alert.says
                )
        due = conditions.due(self._alerts.values(), self._targets, now_ms)
        # Told before it is kept: the disk may be what is wrong.
        await asyncio.gather(*(self._tell(alert, targets) for alert, targets in due[:TOLD_AT_ONCE]))
        try:
            await self._keep()
        except XscError as fault:
            if not self._failing:
                self._log.warning("node.alerts_not_kept", reason=fault.message)
            self._failing = True
        else:
            self._failing = False

    async def test(self) -> list[Told]:
        """Send every target a document of the kind `test`; return what came of each.

        Raises:
            NotFound: there is none.
        """
        if not self._targets:
            hint = "set it in config.toml, and start the node again"
            raise NotFound("the setting notify names no target", hint=hint)
        body = self._document("test", b"", "this is a test", self._clock.now_ms())
        faults = await asyncio.gather(*(self._send(target, body) for target in self._targets))
        return [
            Told(target=_without_secrets(place), taken=not fault, reason=fault)
            for place, fault in zip(self._targets.values(), faults, strict=True)
        ]

    def _document(self, kind: str, peer: bytes, says: str, since_ms: int) -> bytes:
        """Return what a target hears."""
        said = {
            "node": to_text(self._node),
            "name": self._name_of(self._node),
            "kind": kind,
            "peer": to_text(peer) if peer else None,
            "peer_name": self._name_of(peer) if peer else None,
            "says": says,
            "since_ms": since_ms,
        }
        return json.dumps(said).encode()

    async def _tell(self, alert: Alert, targets: Sequence[str]) -> None:
        """Tell targets of an alert, and note who heard."""
        body = self._document(alert.kind, alert.peer, alert.says, alert.since_ms)
        faults = await asyncio.gather(*(self._send(target, body) for target in targets))
        heard = [target for target, fault in zip(targets, faults, strict=True) if not fault]
        # It may have been acknowledged meanwhile.
        kept = self._alerts[alert.key]
        failed = len(heard) < len(targets)
        self._alerts[alert.key] = conditions.told(kept, heard, failed, self._clock.now_ms())

    async def _send(self, target: str, body: bytes) -> str:
        """Send a document to a target; return why it was not taken, or nothing."""
        place = self._targets[target]
        try:
            await (
                _run(place.removeprefix(EXEC), body)
                if place.startswith(EXEC)
                else _post(place, body)
            )
        except XscError as fault:
            # The target itself may hold a secret.
            self._log.warning("node.alert_not_told", target=target, reason=fault.message)
            return fault.message
        return ""

    async def _keep(self) -> None:
        """Write what was raised, where it changed."""
        raised = Raised(alerts=tuple(each for each in self._alerts.values() if each.raised))
        if raised != self._kept:
            await self._commit([(STATE, raised.to_bytes())])
            self._kept = raised


def _hashed(target: str) -> str:
    return hashlib.sha256(target.encode()).hexdigest()[:16]


def _without_secrets(place: str) -> str:
    """Return the program or the host of a target: arguments and paths may be secret."""
    if place.startswith(EXEC):
        return EXEC + shlex.split(place.removeprefix(EXEC))[0]
    scheme, _, rest = place.partition("://")
    return f"{scheme}://{re.split('[/?#]', rest)[0].rpartition('@')[2]}"


def _is_own(variable: str) -> bool:
    """Say whether a variable is for the node: one holds the passphrase of its key."""
    return variable.startswith("XSC_")


async def _run(words: str, body: bytes) -> None:
    """Run a program with a document on its standard input.

    Raises:
        UnavailableError: it cannot be started, fails, or does not end.
    """
    argv = shlex.split(words)
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            env={name: value for name, value in os.environ.items() if not _is_own(name)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as fault:
        raise UnavailableError(f"the program does not start: {fault.strerror}") from None
    try:
        async with asyncio.timeout(EXEC_MS_MAX / 1_000):
            await process.communicate(body)
    except TimeoutError:
        raise UnavailableError("the program did not end") from None
    finally:
        if process.returncode is None:
            # What it has started ends with it.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        raise UnavailableError(f"the program ended with {process.returncode}")


async def _post(url: str, body: bytes) -> None:
    """Post a document; follow no redirect.

    Raises:
        UnavailableError: the URL does not take it, or not in time.
    """
    try:
        async with (
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=URL_MS_MAX / 1_000),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            ) as session,
            session.post(
                url,
                data=body,
                headers={"Content-Type": "application/json"},
                allow_redirects=False,
            ) as answer,
        ):
            await answer.content.read(ANSWER_BYTES_MAX)
            status = answer.status
    except TimeoutError:
        raise UnavailableError("the URL does not answer") from None
    except (aiohttp.ClientError, OSError) as fault:
        reason = getattr(fault, "strerror", None) or type(fault).__name__
        raise UnavailableError(f"the URL cannot be reached: {reason}") from None
    if not 200 <= status < 300:
        raise UnavailableError(f"the URL answers {status}")
