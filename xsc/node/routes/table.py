"""Finds what answers each endpoint of `/v1`: the function of its name, in small letters.

A name that is a word of Python has an underline behind it: LIST is answered by `list_`.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Final, cast

from xsc import api
from xsc.api.endpoint import Endpoint
from xsc.node.api.serving import Answer, Answers
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

_SUBJECTS: Final = (
    (api.status, (status,)),
    (api.peers, (peers,)),
    (api.objects, (objects,)),
    (api.home, (home,)),
    (api.jobs, (jobs,)),
    (api.services, (services,)),
    (api.space, (space,)),
    (api.programs, (programs,)),
    (api.market, (market, allocation)),
    (api.ledger, (ledger,)),
)


def _function(modules: Iterable[ModuleType], name: str) -> Answer:
    """Return what answers the endpoint of a name."""
    places = [vars(module) for module in modules]
    found = [place.get(f"{name}_") or place.get(name) for place in places]
    (answer,) = filter(None, found)
    return cast("Answer", answer)


ANSWERS: Final[Answers] = {
    each: _function(modules, name.lower())
    for subject, modules in _SUBJECTS
    for name, each in vars(subject).items()
    if isinstance(each, Endpoint)
}
