"""What an endpoint of the node's HTTP API is: one row of the table that node and client share.

A field of a request is in the path if the path names it, in a header if `header` says so, and else
in the JSON body, or in the query if a request has no JSON. Values of headers are percent-encoded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar, dataclass_transform
from urllib.parse import quote

from xsc.base.errors import ArgumentInvalid
from xsc.base.ids import from_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic_core import CoreSchema

T = TypeVar("T")
Q = TypeVar("Q")
R = TypeVar("R")

Takes = Literal["json", "framed", "bytes"]
"""framed: the length of the JSON in 4 bytes, big-endian, the JSON, and then bytes."""
Gives = Literal["json", "bytes", "cbor", "text", "lines", "events"]
"""cbor: a file for `xsc verify`. text: metrics. lines, events: a JSON document
each, as they come."""
_PLAIN = "!#$&'()*+,-./:;<=>?@[]^_`{|}~"
"""Characters that a header holds as they are: no space, which would be lost at an end."""


class IdText:
    """Marks bytes that are an id: base32 text in JSON, where other bytes are base64."""

    @staticmethod
    def __get_pydantic_core_schema__(*_: object) -> CoreSchema:
        from pydantic_core import core_schema  # noqa: PLC0415 (the client has none)

        text = core_schema.str_schema(pattern="^[a-z2-7]+$")
        return core_schema.json_or_python_schema(
            core_schema.no_info_after_validator_function(from_text, text),
            core_schema.bytes_schema(),
        )


Key = Annotated[bytes, IdText()]
"""The id of a node, slot, lease or record."""


def written_name(name: str) -> str:
    """Return a field's name in JSON: its last underline keeps it from being a word of Python."""
    return name.rstrip("_")


def header(name: str, *, default: T) -> T:
    """Return a field of a request that travels in a header, so that no log of paths holds it."""
    return field(default=default, metadata={"header": name})


def absent(*, default: None = None) -> Any:  # noqa: ANN401 (of any type, or None)
    """Return a field of an answer that is left out where it is None."""
    return field(default=default, metadata={"absent": True})


def named(node: str, *, init: Literal[False] = False) -> Any:  # noqa: ANN401, ARG001 (for mypy)
    """Return a field that names the node of another one: who answers says what it calls it."""
    return field(default="", metadata={"names": node})


_CONFIG = {
    "strict": True,
    "extra": "forbid",
    "val_json_bytes": "base64",
    "alias_generator": written_name,
    "use_attribute_docstrings": True,
}
"""For pydantic, which reads them in the node."""


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(field, header, absent, named)
)
class Model:
    """A request or an answer: strict, without unknown fields, never changed."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)
        cls.__pydantic_config__ = _CONFIG  # type: ignore[attr-defined]


class Nothing(Model):
    """A request that says all by its method and path."""


class Id(Model):
    """What has an id; of own slots, leases and clearings its beginning is enough."""

    id: str


class NamedPeer(Model):
    """A peer, and how this node calls it."""

    id: Key
    name: str = named("id")


class OfNode(Model):
    """What is said of a node, and how that is called here."""

    node: Key
    name: str = named("node")


class OfPeer(Model):
    """What is between this node and a peer, and how that is called here."""

    peer: Key
    name: str = named("peer")


def filled(kind: type[T], /, *values: object, **given: Any) -> T:  # noqa: ANN401 (its fields)
    """Return a dataclass: each field as given, else what the first value has that has its name."""
    for each in fields(kind):  # type: ignore[arg-type]
        for value in values:
            if each.name not in given and hasattr(value, each.name):
                given[each.name] = getattr(value, each.name)
    return kind(**given)


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[Q, R]):
    """What is asked at a path, and what is answered."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    request: type[Q]
    answer: type[R] | UnionType
    """Of one line, event or row, where there are several."""
    says: str
    """What it does, in one sentence."""
    takes: Takes = "json"
    gives: Gives = "json"
    status: int = 200
    rows: str = ""
    """Where the answer is a list of rows: its name in the JSON that holds it."""

    @property
    def has_json(self) -> bool:
        """Whether a request carries JSON."""
        return self.takes == "framed" or (self.takes == "json" and self.method in {"POST", "PUT"})


def get(
    path: str, request: type[Q], answer: type[R], says: str, *, gives: Gives = "json"
) -> Endpoint[Q, R]:
    """Return an endpoint that changes nothing."""
    return Endpoint("GET", path, request, answer, says, gives=gives)


def post(
    path: str,
    request: type[Q],
    answer: type[R],
    says: str,
    *,
    takes: Takes = "json",
    status: int = 200,
) -> Endpoint[Q, R]:
    """Return an endpoint that changes something."""
    return Endpoint("POST", path, request, answer, says, takes, status=status)


def listing(
    path: str, request: type[Q], row: type[R], says: str, *, rows: str = ""
) -> Endpoint[Q, R]:
    """Return an endpoint that lists rows, by default under the last word of its path."""
    return Endpoint("GET", path, request, row, says, rows=rows or path.rsplit("/", 1)[1])


def in_path(endpoint: Endpoint[Any, Any]) -> frozenset[str]:
    """Return the names of the fields that are in the path."""
    return frozenset(re.findall(r"{(\w+)}", endpoint.path))


@cache
def headers_of(request: type[DataclassInstance]) -> Mapping[str, str]:
    """Return the headers that fields of a request travel in, by the fields' names."""
    placed = [each for each in fields(request) if "header" in each.metadata]
    return {each.name: each.metadata["header"] for each in placed}


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def written(
    endpoint: Endpoint[Q, Any], asked: Q
) -> tuple[str, Mapping[str, str], Mapping[str, Any]]:
    """Return a request's path with its query, its headers, and its JSON.

    What has its default is left out.

    Raises:
        ArgumentInvalid: what its path names is empty.
        UnicodeEncodeError: a text is none, as a shell may hand it over.
    """
    headers, document, query, path = {}, {}, [], endpoint.path
    placed = in_path(endpoint)
    for each in fields(endpoint.request):  # type: ignore[arg-type]
        value = getattr(asked, each.name)
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if each.name in placed:
            if not value:
                raise ArgumentInvalid("an empty text names nothing", hint="name what is meant")
            path = path.replace(f"{{{each.name}}}", quote(value, safe=""))
        elif value is None or value == default:
            continue
        elif name := each.metadata.get("header"):
            headers[name] = quote(_text(value), safe=_PLAIN)
        elif endpoint.has_json:
            document[each.name] = value
        else:
            query.append(f"{each.name}={quote(_text(value), safe='')}")
    return path + ("?" + "&".join(query) if query else ""), headers, document
