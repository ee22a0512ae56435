"""What is offered and needed ahead of use, as it is asked of the node."""

from __future__ import annotations

import re
from typing import cast

from xsc.api import market as api
from xsc.base.errors import ArgumentInvalid
from xsc.client.core import Document


def slot_id_of(text: str) -> str:
    """Return the id of a slot or need, or the beginning of one.

    Raises:
        ArgumentInvalid: it is none.
    """
    if not re.fullmatch("[a-z2-7]{1,26}", text):
        hint = "`xsc market slots` lists them"
        raise ArgumentInvalid(f"'{text}' is no id of an offer or need", hint=hint)
    return text


def declaration(role: str, kind: str, stated: Document) -> api.Declare:
    """Return the request for a new offer or need."""
    return api.Declare(role=cast(api.Role, role), kind=cast(api.Kind, kind), **stated)
