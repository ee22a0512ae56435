"""Finds what answers each endpoint of `/v1`: the function of its name, in small letters.

A name that is a word of Python has an underline behind it: LIST is answered by `list_`. The routes
of a subject are in the module of its name. A node does not start where one is missing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

from xsc.api import endpoint, table
from xsc.node.api.serving import Answers

_ROUTES: Final = {
    subject: vars(import_module(subject.__name__.replace("xsc.api", "xsc.node.routes")))
    for subject in table.SUBJECTS
}
ANSWERS: Final[Answers] = {
    each: routes.get(name.lower()) or routes[f"{name.lower()}_"]
    for subject, routes in _ROUTES.items()
    for name, each in vars(subject).items()
    if isinstance(each, endpoint.Endpoint)
}
