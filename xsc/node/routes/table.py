"""Finds what answers each endpoint of `/v1`: the function of its name, in small letters.

A name that is a word of Python has an underline behind it: LIST is answered by `list_`. Each module
of routes has the endpoints that it answers as `api`.
"""

from __future__ import annotations

from typing import Final

from xsc.api.endpoint import Endpoint
from xsc.node.api.serving import Answers
from xsc.node.routes import (
    allocation,
    home,
    jobs,
    ledger,
    market,
    objects,
    peers,
    programs,
    services,
    space,
    status,
)

_MODULES: Final = (
    *(allocation, home, jobs, ledger, market, objects),
    *(peers, programs, services, space, status),
)
ANSWERS: Final[Answers] = {
    each: answer
    for module in _MODULES
    for name, each in vars(module.api).items()
    if isinstance(each, Endpoint)
    for answer in map(vars(module).get, (name.lower(), f"{name.lower()}_"))
    if answer is not None
}
