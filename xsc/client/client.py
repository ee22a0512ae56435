"""The asynchronous client: typed calls over the synchronous core, in threads.

A call that is cancelled gives up its transfer at the next block.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

from xsc import api
from xsc.base import errors, limits
from xsc.base.jobs import JobItem, JobOptions, JobResult, JobSpec
from xsc.base.progress import Progress
from xsc.client.calls import (
    FSCK_TIMEOUT_S,
    Calls,
    DeployOptions,
    PutOptions,
    follow,
    read_document,
    value_of,
)
from xsc.client.core import Asked, Document
from xsc.client.files import read_module, write_whole
from xsc.client.targets import Ask, Target, survey

T = TypeVar("T")
R = TypeVar("R")
IN_FLIGHT = 64
"""Calls at once, of all nodes together; those of a stream wait in between."""
_THREADS = ThreadPoolExecutor(IN_FLIGHT, "xsc-client")
_FOLLOW_MS = 1_000
"""How long one call waits for a row of a log: who cancels does not wait longer for its thread."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An object that was stored."""

    capability: str
    name: str
    size_bytes: int
    survives_nodes: int
    """How many of its hosts may be lost before it cannot be read."""
    hosts: tuple[str, ...]
    """The node id of each shard's host, in order of shards."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ObjectRow:
    """An object in the list of this node's objects."""

    name: str
    capability: str
    size_bytes: int
    created_ms: int
    margin: int
    """How many more hosts may be lost."""


@dataclass(frozen=True, slots=True)
class SpaceRecord:
    """A record in the list of a space."""

    owner: str
    path: str
    sequence: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SpaceChange:
    """A change of a space."""

    owner: str
    path: str
    sequence: int
    value: bytes | None
    """None where the path was deleted, or where a large value is not loaded."""


class _Cancelled(Exception):
    """The task that waits for this thread is gone."""


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401
    return await asyncio.get_running_loop().run_in_executor(_THREADS, work, *arguments)


async def _watched(work: Callable[[Progress], T]) -> T:
    """Return what `work` returns; it gets a callback that raises once nobody waits any more."""
    gone = threading.Event()

    def progress(_: int) -> None:
        if gone.is_set():
            raise _Cancelled

    try:
        return await _in_thread(work, progress)
    except asyncio.CancelledError:
        gone.set()
        raise


async def _each(
    opened: Callable[[], AbstractContextManager[Iterable[T]]], made: Callable[[T], R]
) -> AsyncIterator[R]:
    """Yield what is made of each item of a stream, as they come."""
    # Closing ends the thread that waits for the next item.
    with await _in_thread(opened) as stream:
        items = iter(stream)
        while (item := await _in_thread(next, items, None)) is not None:
            yield made(item)


def _row(kind: type[T], row: Document) -> T:
    """Return the fields of a row that a class has."""
    return kind(**{name: row[name] for name in kind.__annotations__})


def _same(item: T) -> T:
    return item


class _Face:
    """The calls of one subject, each in a thread."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def _ask(self, endpoint: Asked, /, *parts: bytes, **said: Any) -> Document:  # noqa: ANN401
        return await _in_thread(partial(self._calls.ask, endpoint, *parts, **said))

    async def _rows(self, endpoint: Asked, /, **said: Any) -> list[Document]:  # noqa: ANN401
        return list((await self._ask(endpoint, **said))[endpoint.rows])


def connect(home: Path | str | None = None) -> Node:
    """Return the client of the node at a home, to be used in an `async with`.

    Args:
        home: the node's directory; XSC_HOME or the default home where None.
    """
    return Node(Calls(None if home is None else Path(home).expanduser().absolute()))


class Node(_Face):
    """A node on this machine, as its owner uses it.

    Every method raises `xsc.base.errors.XscError`; `NodeUnreachable` where no
    node runs.
    """

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls)
        self.space = Space(calls)
        self.allocation = Allocation(calls)
        self.market = Market(calls)
        self.programs = Programs(calls)
        self.id = ""

    async def __aenter__(self) -> Self:
        """Make sure that the node answers, and learn its id."""
        self.id = str((await self.status())["id"])
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is kept open between calls."""

    async def put(self, source: Path | str | bytes, **how: Unpack[PutOptions]) -> str:
        """Store a file, or bytes; return the capability that reads it.

        Args:
            source: path of the file, or the content itself as bytes.
            how: its name, contract and code (`xsc.client.calls.PutOptions`); a file's name is
                its own where None. `store` tells of a warning where peers do not
                have the list of names in time.

        Raises:
            DurabilityUnreachable: the nodes that are known could never keep the contract.
            CreditExceeded, SpaceExhausted, NoOffers: they cannot now; the message names who
                refused and why, the hint what works now.
        """
        return (await self.store(source, **how)).capability

    async def store(self, source: Path | str | bytes, **how: Unpack[PutOptions]) -> Stored:
        """Store like `put`; return where it is and what it survives, too."""

        def work(progress: Progress) -> Document:
            if isinstance(source, bytes):
                size = len(source)
                return self._calls.put(BytesIO(source), size_bytes=size, progress=progress, **how)
            return self._calls.put_file(Path(source), watch=lambda _: nullcontext(progress), **how)

        return _stored(await _watched(work))

    async def get(self, capability: str, path: Path | str) -> int:
        """Write an object to a file, whole or not at all; return its size in bytes.

        What an interrupted call has left beside the file is continued.
        """

        def work(progress: Progress) -> int:
            return self._calls.get(capability, Path(path), lambda _: nullcontext(progress))

        return await _watched(work)

    async def read(self, capability: str) -> bytes:
        """Return all of an object; use `stream` for one that is larger than memory."""
        return b"".join([block async for block in self.stream(capability)])

    def stream(self, capability: str, part: str | None = None) -> AsyncIterator[bytes]:
        """Yield an object's content; it ends without an error only if all of it came.

        Args:
            capability: of the object.
            part: the range that is wanted, like "1000-1999", "1000-" or "-500"; only what
                holds it is fetched. All of the object where None.
        """
        return _each(partial(self._calls.open, capability, part), _same)

    async def objects(self) -> list[ObjectRow]:
        """Return the objects that this node has stored."""
        rows = (await _in_thread(self._calls.objects))["objects"]
        return [_row(ObjectRow, row) for row in rows]

    async def stat(self, capability: str) -> dict[str, Any]:
        """Ask an object's hosts for its shards; return what `xsc store stat --json` prints.

        Of a directory it goes over all files, and returns the worst.
        """
        return await self._survey(capability, self._calls.stat)

    async def check(self, capability: str, *, deep: bool = False) -> dict[str, Any]:
        """Say what an object's placement is worth; `deep` has every shard read and verified.

        Of a directory it goes over all files, and returns the worst.
        """
        return await self._survey(capability, partial(self._calls.check, deep=deep))

    async def _survey(self, capability: str, ask: Ask) -> dict[str, Any]:
        def work(progress: Progress) -> Document:
            return survey(self._calls, Target(capability), ask, lambda _: nullcontext(progress))

        return await _watched(work)

    async def remove(self, capability: str) -> list[str]:
        """Delete an object; return the ids of hosts that have not confirmed it yet."""
        return list((await _in_thread(self._calls.remove, capability))["unconfirmed"])

    async def invoke(
        self,
        module: Path | str | bytes,
        function: str,
        arguments: Sequence[str] = (),
        *,
        receipt: Path | str | None = None,
        **options: Unpack[JobOptions],
    ) -> JobResult:
        """Call one export of a WebAssembly module on some node of the market.

        Args:
            module: path of the module, or its bytes.
            function: name of the export.
            arguments: numbers as text; the export's signature says of which type.
            receipt: where the execution receipt is written, also when the run traps.
            options: limits and place of the run (`xsc.base.jobs.JobOptions`).

        Raises:
            LimitError: a limit was hit: FuelExhausted, MemoryExceeded, TimeExceeded, …
            ModuleTrapped: the program failed by itself.
        """

        def work() -> JobResult:
            spec = JobSpec.invoke(_code(module), function, arguments, **options)
            return _finished(self._calls.job(spec), receipt)

        return await _in_thread(work)

    async def invoke_many(
        self,
        module: Path | str | bytes,
        function: str,
        calls: AsyncIterable[Sequence[str]] | Iterable[Sequence[str]],
        *,
        batch: int = 4096,
        item_fuel: int | None = None,
        **options: Unpack[JobOptions],
    ) -> AsyncIterator[JobItem]:
        """Call one export for each set of arguments, and yield each result, in order.

        Sets of arguments are taken as results are wanted, up to `batch` at once under one
        order; while one batch runs, the next is gathered. A call that traps is an item.

        Args:
            module, function: as for `invoke`.
            calls: the arguments of each call.
            batch: most calls under one order.
            item_fuel: most fuel of one call.
            options: as for `invoke`; fuel and time are those of one batch.

        Raises:
            SignatureMismatch: a set of arguments is wrong; nothing of its batch was run.
            XscError: as `invoke`, where a batch as a whole was ended.
        """
        if not 1 <= batch <= limits.BATCH_ITEMS_MAX:
            raise errors.ArgumentInvalid(f"a batch has from 1 to {limits.BATCH_ITEMS_MAX} calls")
        code = _code(module)

        def work(lines: bytes) -> tuple[JobItem, ...]:
            spec = JobSpec.batch(code, function, lines, item_fuel, **options)
            return _finished(self._calls.job(spec)).items

        running: asyncio.Task[tuple[JobItem, ...]] | None = None
        try:
            async for lines in _gathered(calls, batch):
                begun = asyncio.create_task(_in_thread(work, lines))
                running, before = begun, running
                if before is not None:
                    for item in await before:
                        yield item
            if running is not None:
                for item in await running:
                    yield item
        finally:
            if running is not None and not running.cancel() and not running.cancelled():
                running.exception()  # nobody waits for it any more

    async def run(
        self,
        module: Path | str | bytes,
        arguments: Sequence[str] = (),
        *,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        inputs: Mapping[str, str] | None = None,
        receipt: Path | str | None = None,
        **options: Unpack[JobOptions],
    ) -> JobResult:
        """Run a WASI program; its exit code is part of the result, whatever it is.

        Args:
            module: path of the module, or its bytes.
            arguments: what the program gets as arguments, without its own name.
            env: its environment, which holds nothing else.
            stdin: its standard input.
            inputs: file name to capability: objects that it finds as files.
            receipt, options: as for `invoke`.

        Raises:
            LimitError, ModuleTrapped: as `invoke`.
        """

        def work() -> JobResult:
            spec = JobSpec.run(_code(module), arguments, env, stdin, inputs, **options)
            return _finished(self._calls.job(spec), receipt)

        return await _in_thread(work)

    async def deploy(
        self, module: Path | str | bytes, name: str, **how: Unpack[DeployOptions]
    ) -> dict[str, Any]:
        """Make a module a service, or the next version of one; return it as `services` does.

        Args:
            module: path of the module, or its bytes.
            name: of the service.
            how: its version, environment, place and limits (`xsc.client.calls.DeployOptions`).
        """
        return await _in_thread(lambda: self._calls.deploy(_code(module), name, **how))

    async def services(self) -> list[dict[str, Any]]:
        """Return the services that this node owns or holds, as `xsc compute ls --json` does."""
        return await self._rows(api.services.LIST)

    async def rollback(self, name: str, to: str | None = None) -> dict[str, Any]:
        """Go back to a version of a service, or to what was active before."""
        return await self._ask(api.services.ROLLBACK, name=name, to=to)

    async def undeploy(self, name: str) -> None:
        """Remove a service with its versions and its log."""
        await self._ask(api.services.UNDEPLOY, name=name)

    async def requests(self, name: str, newest: int = 100) -> list[dict[str, Any]]:
        """Return the newest rows of a service's log, in order."""
        return await self._rows(api.services.LOG, name=name, n=newest)

    def follow(self, name: str, newest: int = 0) -> AsyncIterator[dict[str, Any]]:
        """Yield the newest rows of a service's log, and each one that comes, without end."""
        rows = follow(self._calls, name, newest, _FOLLOW_MS)
        return _each(lambda: nullcontext(rows), _same)

    async def status(self) -> dict[str, Any]:
        """Return what `xsc node status --json` prints."""
        return await self._ask(api.status.STATUS)

    async def peers(self) -> list[dict[str, Any]]:
        """Return the known peers, each as `xsc peer ls --json` prints it."""
        return await self._rows(api.peers.LIST)

    async def balances(self) -> dict[str, int]:
        """Return what each peer owes this node, by id, in micro-credits; negative if we owe."""
        rows = (await self._ask(api.ledger.BALANCE))["balances"]
        return {row["peer"]: row["balance_micro"] for row in rows}


class Space(_Face):
    """The key space that a node and its peers share.

    An address is `[OWNER:]PATH`, with OWNER the name or id of a node; without it the node itself
    is meant. Only the own space can be written to.
    """

    async def put(self, path: str, value: bytes | str) -> int:
        """Write a value, text or bytes, and return its sequence."""
        data = value.encode() if isinstance(value, str) else value
        return int((await self._ask(api.space.PUT, data, at=path))["sequence"])

    async def get(self, address: str, sequence: int | None = None) -> bytes:
        """Return the value at an address, or a replaced one that `versions` lists.

        Raises:
            NotFound: nothing is there.
        """
        return value_of((await self._ask(api.space.GET, at=address, sequence=sequence))["value"])

    async def versions(self, path: str) -> list[SpaceRecord]:
        """Return the replaced records of an own path that are kept, the newest first."""
        rows = await self._rows(api.space.VERSIONS, at=path)
        return [_row(SpaceRecord, row) for row in rows]

    async def stat(self, address: str) -> dict[str, Any]:
        """Return the record at an address, as `xsc space get --json` prints it."""
        return await self._ask(api.space.GET, at=address)

    async def remove(self, path: str) -> int:
        """Delete a path, and return the sequence of the deletion.

        Raises:
            NotFound: nothing is there.
        """
        return int((await self._ask(api.space.REMOVE, at=path))["sequence"])

    async def records(self, prefix: str = "") -> list[SpaceRecord]:
        """Return the records at an address and below it."""
        rows = await self._rows(api.space.LIST, under=prefix)
        return [_row(SpaceRecord, row) for row in rows]

    def watch(self, prefix: str = "") -> AsyncIterator[SpaceChange]:
        """Yield each change at an address and below it, from now on, without end."""
        return _each(partial(self._calls.events, api.space.WATCH, under=prefix), _change)

    async def stats(self) -> dict[str, int]:
        """Return what `xsc space stats --json` prints."""
        return await self._ask(api.space.STATS)

    async def diagnostics(self) -> Document:
        """Return what `xsc space diagnostics --json` prints."""
        return await self._ask(api.space.DIAGNOSTICS)

    async def compact(self) -> dict[str, int]:
        """Return room to the disk, and the stats after that."""
        return await self._ask(api.space.COMPACT, timeout_s=FSCK_TIMEOUT_S)


def _change(found: Document) -> SpaceChange:
    value = None if found["value"] is None else value_of(found["value"])
    return SpaceChange(found["owner"], found["path"], found["sequence"], value)


class Programs(_Face):
    """The programs of a node: values that are computed anew when what they depend on changes.

    A program is named by its hash, or the beginning of it.
    """

    async def register(self, path: Path | str, *, activate: bool = False) -> str:
        """Register the program of a file, and run it if asked; return its hash.

        Modules that it names are files beside it.
        """

        def work() -> Document:
            return self._calls.register(*read_document(Path(path)), activate=activate)

        return str((await _in_thread(work))["hash"])

    async def activate(self, program: str) -> None:
        """Run a registered program from now on."""
        await self._ask(api.programs.ACTIVATE, hash=program)

    async def deactivate(self, program: str) -> None:
        """Run a program no more; what it published stays."""
        await self._ask(api.programs.DEACTIVATE, hash=program)

    async def execute(self, program: str) -> Document:
        """Run a frame of an active program now; return the results."""
        return await self._ask(api.programs.EXEC, hash=program)

    async def stop(self, program: str) -> None:
        """Stop a program until the node starts again, or `activate`."""
        await self._ask(api.programs.STOP, hash=program)

    async def set_variable(self, program: str, name: str, value: str) -> Document:
        """Give a variable of kind `value` or `local` a value; return the results."""
        return await self._ask(api.programs.SET, hash=program, name=name, value=value)

    async def results(self, program: str) -> Document:
        """Return what `xsc program results --json` prints."""
        return await self._ask(api.programs.SHOW, hash=program)

    async def programs(self) -> list[Document]:
        """Return the registered programs, each as `xsc program ls --json` prints it."""
        return await self._rows(api.programs.LIST)

    async def why(self, address: str, *, replay: bool = False) -> Document:
        """Return what `xsc program why --json` prints."""
        return await self._ask(
            api.programs.WHY, at=address, replay=replay, timeout_s=FSCK_TIMEOUT_S
        )

    def watch(self, program: str) -> AsyncIterator[Document]:
        """Yield the results, now and after each frame, until the program is deactivated."""
        return _each(partial(self._calls.events, api.programs.WATCH, hash=program), _same)


class Market(_Face):
    """What a node offers and needs ahead of use.

    A quantity is bytes of `storage` held at any moment, or fuel a second of `compute`; in its
    place, `workers` are so many of this node. A price is micro-credits a GiB and hour, or a
    Gfuel. What may be stated beside them: `from_ms`, `to_ms`, `every`, `price_micro`,
    `filters`, `location`, `rule` (`docs/design/slots.md`).
    """

    async def offer(self, kind: api.market.Kind, quantity: int | None = None, **stated: Any) -> str:  # noqa: ANN401
        """Offer capacity and return the id of the slot."""
        return await self._declare("offer", kind, quantity=quantity, **stated)

    async def offer_all(self, kind: api.market.Kind) -> str:
        """Offer all that the node has, as it does by default, and return the id of the slot."""
        return await self._declare("offer", kind, standing=True)

    async def need(self, kind: api.market.Kind, quantity: int | None = None, **stated: Any) -> str:  # noqa: ANN401
        """State a need of capacity and return its id."""
        return await self._declare("need", kind, quantity=quantity, **stated)

    async def _declare(self, role: api.market.Role, kind: api.market.Kind, **stated: Any) -> str:  # noqa: ANN401
        return str((await self._ask(api.market.DECLARE, role=role, kind=kind, **stated))["id"])

    async def edit(self, slot_id: str, **stated: Any) -> None:  # noqa: ANN401
        """Change what is stated of an own offer or need.

        Raises:
            NotFound: there is none of that id.
        """
        await self._ask(api.market.EDIT, id=slot_id, **stated)

    async def withdraw(self, slot_id: str) -> None:
        """Withdraw an own offer or need.

        Raises:
            NotFound: there is none of that id.
        """
        await self._ask(api.market.WITHDRAW, id=slot_id)

    async def slots(self) -> list[dict[str, Any]]:
        """Return own and known slots and needs, as `xsc market slots --json` prints them."""
        return await self._rows(api.market.SLOTS)

    async def why(self, some_id: str) -> dict[str, Any]:
        """Return why an own need, an offer or a clearing came out as it did.

        Raises:
            NotFound: none of that id is known.
            ProofInvalid: the record of another node's clearing does not recompute.
        """
        return await self._ask(api.market.WHY, id=some_id)


def _stored(document: Document) -> Stored:
    hosts = tuple(row["node"] for row in document["hosts"])
    return _row(Stored, {**document, "hosts": hosts, "warnings": tuple(document["warnings"])})


def _code(module: Path | str | bytes) -> bytes:
    return module if isinstance(module, bytes) else read_module(Path(module))


def _finished(done: JobResult, receipt: Path | str | None = None) -> JobResult:
    """Return a result, its receipt saved where it was asked for; raise its trap."""
    if receipt is not None:
        write_whole(Path(receipt), [done.receipt])
    if done.trap is not None:
        raise done.trap
    return done


def _line(arguments: Sequence[str]) -> str:
    if any(len(text.split()) != 1 for text in arguments):
        raise errors.ArgumentInvalid("an argument is empty or holds a space: it can be no number")
    return " ".join(arguments) + "\n"


async def _gathered(
    calls: AsyncIterable[Sequence[str]] | Iterable[Sequence[str]], most: int
) -> AsyncIterator[bytes]:
    """Yield the lines of up to that many calls at once."""
    lines: list[str] = []
    async for call in calls if isinstance(calls, AsyncIterable) else _in_turn(calls):
        lines.append(_line(call))
        if len(lines) == most:
            yield "".join(lines).encode()
            lines.clear()
    if lines:
        yield "".join(lines).encode()


async def _in_turn(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


class Allocation(_Face):
    """What was granted to needs ahead of use; each answer as its command prints it in JSON."""

    async def show(self) -> dict[str, Any]:
        """Return what was cleared: by the node, and by nodes that it follows."""
        return await self._ask(api.market.SHOW)

    async def groups(self) -> dict[str, list[str]]:
        """Return the eleven groups of nodes by name."""
        return dict((await self._ask(api.market.GROUPS))["groups"])

    async def causally_consistent_commitments(self) -> list[dict[str, Any]]:
        """Return the commitments of one cut: none of their authors knew what is not known here."""
        found = (await self._ask(api.market.CONSISTENT))["commitments"]
        return [each for each in found if each["consistent"]]

    async def expected(self) -> dict[str, Any]:
        """Return what the needs of the node are granted."""
        return await self._ask(api.market.EXPECTED)

    async def received(self) -> dict[str, Any]:
        """Return what the node has drawn of that."""
        return await self._ask(api.market.RECEIVED)

    async def why(self, node_or_slot: str) -> list[dict[str, Any]]:
        """Return why a node, or the needs of a slot, have what they have.

        Raises:
            NotFound: nothing that was cleared names it.
        """
        return list((await self._ask(api.market.WHY, id=node_or_slot))["why"])

    async def clearings(self) -> list[dict[str, Any]]:
        """Return the clearings of the node's slots."""
        return await self._rows(api.market.CLEARINGS)
