"""The node's HTTP API as data: its endpoints with their requests and answers, once for all.

Subjects are imported where they are first used, as `api.peers`: making all models takes as long as
a command may.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xsc.api import (
        health,
        home,
        jobs,
        ledger,
        market,
        monitor,
        objects,
        peers,
        programs,
        services,
        space,
        status,
    )


__all__ = ["status", "monitor", "peers", "objects", "home", "jobs"]  # noqa: RUF022 - as shown
__all__ += ["services", "space", "programs", "market", "ledger", "health"]  # noqa: RUF022 - as shown


def __getattr__(name: str) -> ModuleType:
    if name.startswith("_"):
        raise AttributeError(name)
    return import_module(f"xsc.api.{name}")
