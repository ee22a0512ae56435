"""Programs: register, list, activate, deactivate, set a variable, follow results, explain."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from annotated_types import Ge, MaxLen

from xsc.api.endpoint import Endpoint, Model, Nothing, get, listing, post


class Module(Model):
    """A module that comes with a program: the name that the document has for it."""

    name: Annotated[str, MaxLen(1024)]
    size_bytes: Annotated[int, Ge(0)]


class Register(Model):
    """A program; its document and its modules follow."""

    form: Literal["toml", "json"]
    document_bytes: Annotated[int, Ge(0)]
    modules: Annotated[list[Module], MaxLen(1024)] = field(default_factory=list)
    activate: bool = False


State = Literal["registered", "active", "stopped", "backing_off", "oscillates", "failed"]


class Program(Model):
    """One program."""

    id: str
    hash: str
    state: State
    frame: int = 0
    fault: str = ""
    """Why it does not run on, or ''."""
    publications: int = 0
    """Frames that wrote something, since the node started or it was activated."""
    built_in: bool = False
    """Whether it comes with XSC, which runs it by itself."""


class Results(Program):
    """What a program computed last."""

    variables: dict[str, str | None] = field(default_factory=dict)
    """As text; null without a value that counts."""
    outputs: dict[str, str | None] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    """Where outputs are published in the own space; the others are the program's alone."""
    errors: dict[str, str] = field(default_factory=dict)
    """By computation or variable."""
    stale: list[str] = field(default_factory=list)
    """Computations whose inputs are missing."""


class Hash(Model):
    """A program, by its hash or the beginning of it."""

    hash: str


class Set(Hash):
    """A variable's value."""

    name: str
    value: str


class Why(Model):
    """A value at `[OWNER:]PATH`; whether functions and modules are run again."""

    at: str = ""
    replay: bool = False


class Provenance(Model):
    """A value, and what is behind it."""

    path: str
    """In the space; of other inputs the computation and output, or the variable."""
    owner: str
    input: str
    """As which input it is read; empty for the value itself."""
    value: str | None
    """As text; null where its record has the hash alone."""
    verified: bool
    """Whether the signatures and hashes of it and of all that is behind it hold."""
    function: str | None
    """Null where no program gave it."""
    version: str | None
    """The hash of the function, or SHA-256 of the module, in hexadecimal."""
    replayed: bool | None
    """Whether a second run gave it again; null where none could be made, or was not asked for."""
    note: str
    inputs: list[Provenance]


REGISTER = post("/v1/programs", Register, Results, "Register one.", takes="framed", status=201)
LIST = listing("/v1/programs", Nothing, Program, "List the programs.")
SHOW = get("/v1/programs/{hash}", Hash, Results, "Show what a program computed last.")
ACTIVATE = post("/v1/programs/{hash}/activate", Hash, Results, "Run a program.")
DEACTIVATE = post("/v1/programs/{hash}/deactivate", Hash, Results, "Run a program no more.")
EXEC = post("/v1/programs/{hash}/exec", Hash, Results, "Run a frame of an active program now.")
STOP = post("/v1/programs/{hash}/stop", Hash, Results, "Stop a program until the next start.")
SET = Endpoint("PUT", "/v1/programs/{hash}/variables/{name}", Set, Results, "Set a variable.")
WATCH = get("/v1/programs/{hash}/watch", Hash, Results, "Follow the results.", gives="events")
WHY = get("/v1/provenance", Why, Provenance, "Show what is behind a value.")
