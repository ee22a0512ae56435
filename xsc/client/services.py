"""Calls for services: deploy, list, roll back, remove, and the log of requests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Unpack

from xsc.api import services as api
from xsc.api.endpoint import Nothing
from xsc.base.errors import ArgumentInvalid
from xsc.base.jobs import LimitOptions
from xsc.base.limits import SERVICE_CONCURRENCY_DEFAULT
from xsc.client.calls import named_first
from xsc.client.core import Core, Document

WAIT_MS = 20_000
"""How long one call waits for the next row of a log that is followed."""
_NAME = re.compile(r"[a-z0-9-]{1,63}")


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ArgumentInvalid(
            f"'{name[:80]}' is no name for a service",
            hint="1 to 63 small letters, digits and dashes, no dash at an end",
        )
    return name


class ServiceCalls:
    """The calls of one node."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def deploy(
        self,
        module: bytes,
        name: str,
        *,
        version: str | None = None,
        env: Mapping[str, str] | None = None,
        concurrency: int | None = None,
        on: str | None = None,
        **limits: Unpack[LimitOptions],
    ) -> Document:
        """Make a module a service, or the next version of one."""

        def send(named: str | None, brought: bytes) -> Document:
            asked = api.Deploy(
                name=name,
                version=version,
                env=dict(env or {}),
                concurrency=SERVICE_CONCURRENCY_DEFAULT if concurrency is None else concurrency,
                on=on,
                module=named,
                module_bytes=len(brought),
                **limits,
            )
            return self.core.ask(api.DEPLOY, asked, brought)

        return named_first(module, send)

    def services(self) -> Document:
        """Return the services that this node owns or holds."""
        return self.core.ask(api.LIST, Nothing())

    def rollback(self, name: str, to: str | None = None) -> Document:
        """Go back to a version, or to what was active before."""
        return self.core.ask(api.ROLLBACK, api.Rollback(name=_name(name), to=to))

    def undeploy(self, name: str) -> Document:
        """Remove a service with its versions and its log."""
        return self.core.ask(api.UNDEPLOY, api.Named(name=_name(name)))

    def log(self, name: str, newest: int) -> list[Document]:
        """Return the newest rows of a service's log, in order."""
        asked = api.Log(name=_name(name), n=newest)
        rows: list[Document] = self.core.ask(api.LOG, asked)["requests"]
        return rows

    def follow(self, name: str, newest: int) -> Iterator[Document]:
        """Yield the newest rows, and each one that comes, without end."""
        rows = self.log(name, newest)
        after = 0
        while True:
            yield from rows
            after = rows[-1]["number"] if rows else after
            rows = self.after(name, after, WAIT_MS)

    def after(self, name: str, number: int, wait_ms: int) -> list[Document]:
        """Return the rows of a log after one; where there is none, wait so long for it."""
        asked = api.Log(name=_name(name), after=number, wait_ms=wait_ms)
        rows: list[Document] = self.core.ask(api.LOG, asked)["requests"]
        return rows
