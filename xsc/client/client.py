"""The asynchronous client: typed calls over the synchronous core, in threads.

A call that is cancelled gives up its transfer at the next block.
"""

from __future__ import annotations

import asyncio
import threading
from base64 import b64decode
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

from xsc.base.errors import ArgumentInvalid, XscError, from_code
from xsc.base.limits import BATCH_ITEMS_MAX
from xsc.client.calls import Calls, Limits, Program, read_module, unreadable
from xsc.client.core import Core, Document, Progress
from xsc.client.files import size_of, write_whole
from xsc.client.services import ServiceCalls

T = TypeVar("T")
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
class Item:
    """What came of one call of many."""

    results: tuple[str, ...]
    fuel_used: int
    trap: XscError | None
    """Why it did not come to its end."""
    receipt: bytes
    """The signed receipt of all calls of its batch."""


@dataclass(frozen=True, slots=True)
class Execution:
    """A function call that came to its end."""

    results: tuple[str, ...]
    fuel_used: int
    memory_peak_bytes: int
    wall_ms: int
    provider: str
    """The node id of who ran it."""
    receipt: bytes
    """What `xsc verify` checks."""
    saved_bytes: int = 0
    """How much of module and input was there already."""


@dataclass(frozen=True, slots=True)
class ProgramRun:
    """A program that came to its end."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    files: dict[str, bytes]
    """What it wrote to its output directory."""
    fuel_used: int
    memory_peak_bytes: int
    wall_ms: int
    provider: str
    """The node id of who ran it."""
    receipt: bytes
    """What `xsc verify` checks."""
    saved_bytes: int = 0
    """How much of module and input was there already."""


class _Cancelled(Exception):
    """The task that waits for this thread is gone."""


async def _in_thread(work: Callable[[Progress], T]) -> T:
    """Return what `work` returns; it gets a callback that raises once nobody waits any more."""
    gone = threading.Event()

    def progress(_: int) -> None:
        if gone.is_set():
            raise _Cancelled

    try:
        return await asyncio.to_thread(work, progress)
    except asyncio.CancelledError:
        gone.set()
        raise


def connect(home: Path | str | None = None) -> Node:
    """Return the client of the node at a home, to be used in an `async with`.

    Args:
        home: the node's directory; XSC_HOME or the default home where None.
    """
    return Node(Core(None if home is None else Path(home).expanduser().absolute()))


class Node:
    """A node on this machine, as its owner uses it.

    Every method raises `xsc.base.errors.XscError`; `NodeUnreachable` where no
    node runs.
    """

    def __init__(self, core: Core) -> None:
        self._calls = Calls(core)
        self._services = ServiceCalls(core)
        self.id = ""

    async def __aenter__(self) -> Self:
        """Make sure that the node answers, and learn its id."""
        self.id = str((await self.status())["id"])
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is kept open between calls."""

    async def put(
        self,
        source: Path | str | bytes,
        *,
        name: str | None = None,
        survive: str = "",
        code: tuple[int, int] | None = None,
        wait_for_name: bool = False,
    ) -> str:
        """Store a file, or bytes; return the capability that reads it.

        Args:
            source: path of the file, or the content itself as bytes.
            name: shown by `objects`; the file's name where None.
            survive: the contract: refuse unless that may be lost, for example
                "2nodes,1site"; empty: the node's default contract.
            code: (k, m): k shards of k + m rebuild the object; (4, 2) where None.
            wait_for_name: return once so many peers have the list of names that a recovery
                knows this one; `store` tells of a warning where they do not have it in time.

        Raises:
            DurabilityUnreachable: the nodes that are known could never keep the contract.
            CreditExceeded, SpaceExhausted, NoOffers: they cannot now; the message names who
                refused and why, the hint what works now.
        """
        stored = await self.store(
            source, name=name, survive=survive, code=code, wait_for_name=wait_for_name
        )
        return stored.capability

    async def store(
        self,
        source: Path | str | bytes,
        *,
        name: str | None = None,
        survive: str = "",
        code: tuple[int, int] | None = None,
        wait_for_name: bool = False,
    ) -> Stored:
        """Store like `put`; return where it is and what it survives, too."""

        def upload(stream: BinaryIO, size: int | None, known_as: str, progress: Progress) -> Stored:
            return _stored(
                self._calls.put(
                    stream,
                    name=known_as if name is None else name,
                    size_bytes=size,
                    survive=survive,
                    code=code,
                    wait_for_name=wait_for_name,
                    progress=progress,
                )
            )

        def work(progress: Progress) -> Stored:
            if isinstance(source, bytes):
                return upload(BytesIO(source), len(source), "", progress)
            path = Path(source)
            try:
                stream = path.open("rb")
            except OSError as fault:
                raise unreadable(path, "file", fault) from None
            with stream:
                return upload(stream, size_of(stream), path.name, progress)

        return await _in_thread(work)

    async def get(self, capability: str, path: Path | str) -> int:
        """Write an object to a file, whole or not at all; return its size in bytes.

        What an interrupted call has left beside the file is continued.
        """

        def work(progress: Progress) -> int:
            return self._calls.get(capability, Path(path), progress)

        return await _in_thread(work)

    async def read(self, capability: str) -> bytes:
        """Return all of an object; use `stream` for one that is larger than memory."""
        return b"".join([block async for block in self.stream(capability)])

    async def stream(self, capability: str, part: str | None = None) -> AsyncIterator[bytes]:
        """Yield an object's content; it ends without an error only if all of it came.

        Args:
            capability: of the object.
            part: the range that is wanted, like "1000-1999", "1000-" or "-500"; only what
                holds it is fetched. All of the object where None.
        """
        download = await asyncio.to_thread(self._calls.open, capability, part)
        with download:
            blocks = download.blocks()
            while (block := await asyncio.to_thread(next, blocks, None)) is not None:
                yield block

    async def objects(self) -> list[ObjectRow]:
        """Return the objects that this node has stored."""
        rows = (await asyncio.to_thread(self._calls.objects))["objects"]
        return [
            ObjectRow(
                name=row["name"],
                capability=row["capability"],
                size_bytes=row["size_bytes"],
                created_ms=row["created_ms"],
                margin=row["margin"],
            )
            for row in rows
        ]

    async def stat(self, capability: str) -> dict[str, Any]:
        """Ask an object's hosts for its shards; return what `xsc store stat --json` prints."""
        return await asyncio.to_thread(self._calls.stat, capability)

    async def check(self, capability: str, *, deep: bool = False) -> dict[str, Any]:
        """Say what an object's placement is worth; `deep` has every shard read and verified."""
        return await asyncio.to_thread(self._calls.check, capability, deep=deep)

    async def remove(self, capability: str) -> list[str]:
        """Delete an object; return the ids of hosts that have not confirmed it yet."""
        return list((await asyncio.to_thread(self._calls.remove, capability))["unconfirmed"])

    async def invoke(
        self,
        module: Path | str | bytes,
        function: str,
        arguments: Sequence[str] = (),
        *,
        fuel: int | None = None,
        memory_bytes: int | None = None,
        timeout_ms: int | None = None,
        on: str | None = None,
        local: bool = False,
        receipt: Path | str | None = None,
    ) -> Execution:
        """Call one export of a WebAssembly module on some node of the market.

        Args:
            module: path of the module, or its bytes.
            function: name of the export.
            arguments: numbers as text; the export's signature says of which type.
            fuel: most fuel it may use; the node's default where None, as for the next two.
            memory_bytes: most memory it may have.
            timeout_ms: most time it may take.
            on: name or id of the node that must run it.
            local: run it on this node, without the market.
            receipt: where the execution receipt is written, also when the run traps.

        Raises:
            LimitError: a limit was hit: FuelExhausted, MemoryExceeded, TimeExceeded, …
            ModuleTrapped: the program failed by itself.
        """
        limits = Limits(fuel, memory_bytes, timeout_ms)

        def work(_: Progress) -> Execution:
            code = module if isinstance(module, bytes) else read_module(Path(module))
            done = self._calls.invoke(code, function, arguments, limits, on=on, local=local)
            proof = _finish(done, receipt)
            return Execution(
                results=tuple(done["results"]),
                fuel_used=done["fuel_used"],
                memory_peak_bytes=done["memory_peak_bytes"],
                wall_ms=done["wall_ms"],
                provider=done["provider"],
                receipt=proof,
                saved_bytes=done.get("saved_bytes", 0),
            )

        return await _in_thread(work)

    async def invoke_many(
        self,
        module: Path | str | bytes,
        function: str,
        calls: AsyncIterable[Sequence[str]] | Iterable[Sequence[str]],
        *,
        batch: int = 4096,
        fuel: int | None = None,
        item_fuel: int | None = None,
        memory_bytes: int | None = None,
        timeout_ms: int | None = None,
        on: str | None = None,
        local: bool = False,
    ) -> AsyncIterator[Item]:
        """Call one export for each set of arguments, and yield what came of it, in order.

        Sets of arguments are taken as results are wanted, up to `batch` at once under one
        order; while one batch runs, the next is gathered. A call that traps is an item.

        Args:
            module, function, memory_bytes, on, local: as for `invoke`.
            calls: the arguments of each call.
            batch: most calls under one order.
            fuel: most fuel of one batch, as `timeout_ms` is its time.
            item_fuel: most fuel of one call.

        Raises:
            SignatureMismatch: a set of arguments is wrong; nothing of its batch was run.
            XscError: as `invoke`, where a batch as a whole was ended.
        """
        if not 1 <= batch <= BATCH_ITEMS_MAX:
            raise ArgumentInvalid(f"a batch has from 1 to {BATCH_ITEMS_MAX} calls")
        code = module if isinstance(module, bytes) else read_module(Path(module))
        limits = Limits(fuel, memory_bytes, timeout_ms)

        def work(lines: bytes) -> list[Item]:
            done = self._calls.batch(
                code, function, lines, limits, item_fuel=item_fuel, on=on, local=local
            )
            proof = _finish(done, None)
            return [
                Item(
                    tuple(row["results"]),
                    row["fuel_used"],
                    None if row["trap"] is None else _trap(row["trap"]),
                    proof,
                )
                for row in done["items"]
            ]

        running: asyncio.Task[list[Item]] | None = None
        try:
            async for lines in _gathered(calls, batch):
                begun = asyncio.create_task(asyncio.to_thread(work, lines))
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
        fuel: int | None = None,
        memory_bytes: int | None = None,
        timeout_ms: int | None = None,
        on: str | None = None,
        local: bool = False,
        receipt: Path | str | None = None,
    ) -> ProgramRun:
        """Run a WASI program; its exit code is part of the answer, whatever it is.

        Args:
            module: path of the module, or its bytes.
            arguments: what the program gets as arguments, without its own name.
            env: its environment, which holds nothing else.
            stdin: its standard input.
            inputs: file name to capability: objects that it finds as files.
            fuel, memory_bytes, timeout_ms, on, local, receipt: as for `invoke`.

        Raises:
            LimitError, ModuleTrapped: as `invoke`.
        """
        limits = Limits(fuel, memory_bytes, timeout_ms)
        program = Program(tuple(arguments), env or {}, stdin, inputs or {})

        def work(_: Progress) -> ProgramRun:
            code = module if isinstance(module, bytes) else read_module(Path(module))
            done = self._calls.run(code, program, limits, on=on, local=local)
            proof = _finish(done, receipt)
            return ProgramRun(
                exit_code=done["exit_code"],
                stdout=b64decode(done["stdout"]),
                stderr=b64decode(done["stderr"]),
                files={name: b64decode(data) for name, data in done["files"].items()},
                fuel_used=done["fuel_used"],
                memory_peak_bytes=done["memory_peak_bytes"],
                wall_ms=done["wall_ms"],
                provider=done["provider"],
                receipt=proof,
                saved_bytes=done.get("saved_bytes", 0),
            )

        return await _in_thread(work)

    async def deploy(
        self,
        module: Path | str | bytes,
        name: str,
        *,
        version: str | None = None,
        env: Mapping[str, str] | None = None,
        fuel: int | None = None,
        memory_bytes: int | None = None,
        timeout_ms: int | None = None,
        concurrency: int | None = None,
        on: str | None = None,
    ) -> dict[str, Any]:
        """Make a module a service, or the next version of one; return it as `services` does.

        Args:
            module: path of the module, or its bytes.
            name: of the service.
            version: named so; a number that rises where None.
            env: the environment of each request.
            fuel, memory_bytes, timeout_ms: what a request may use.
            concurrency: requests at once.
            on: the node that serves it; this one where None.
        """
        limits = Limits(fuel, memory_bytes, timeout_ms)

        def work(_: Progress) -> dict[str, Any]:
            code = module if isinstance(module, bytes) else read_module(Path(module))
            return self._services.deploy(
                code, name, limits, version=version, env=env, concurrency=concurrency, on=on
            )

        return await _in_thread(work)

    async def services(self) -> list[dict[str, Any]]:
        """Return the services that this node owns or holds, as `xsc compute ls --json` does."""
        return list((await asyncio.to_thread(self._services.services))["services"])

    async def rollback(self, name: str, to: str | None = None) -> dict[str, Any]:
        """Go back to a version of a service, or to what was active before."""
        return await asyncio.to_thread(self._services.rollback, name, to)

    async def undeploy(self, name: str) -> None:
        """Remove a service with its versions and its log."""
        await asyncio.to_thread(self._services.undeploy, name)

    async def requests(self, name: str, newest: int = 100) -> list[dict[str, Any]]:
        """Return the newest rows of a service's log, in order."""
        return await asyncio.to_thread(self._services.log, name, newest)

    async def follow(self, name: str, newest: int = 0) -> AsyncIterator[dict[str, Any]]:
        """Yield the newest rows of a service's log, and each one that comes, without end."""
        last = await self.requests(name, max(newest, 1))
        number = last[-1]["number"] if last else 0
        for row in last if newest else ():
            yield row
        while True:
            for row in await asyncio.to_thread(self._services.after, name, number, _FOLLOW_MS):
                number = row["number"]
                yield row

    async def status(self) -> dict[str, Any]:
        """Return what `xsc node status --json` prints."""
        return await asyncio.to_thread(self._calls.status)

    async def peers(self) -> list[dict[str, Any]]:
        """Return the known peers, each as `xsc peer ls --json` prints it."""
        return list((await asyncio.to_thread(self._calls.peers))["peers"])

    async def balances(self) -> dict[str, int]:
        """Return what each peer owes this node, by id, in micro-credits; negative if we owe."""
        rows = (await asyncio.to_thread(self._calls.balances))["balances"]
        return {row["peer"]: row["balance_micro"] for row in rows}


def _stored(document: Document) -> Stored:
    return Stored(
        capability=document["capability"],
        name=document["name"],
        size_bytes=document["size_bytes"],
        survives_nodes=document["survives_nodes"],
        hosts=tuple(row["node"] for row in document["hosts"]),
        warnings=tuple(document["warnings"]),
    )


def _finish(done: Document, receipt: Path | str | None) -> bytes:
    """Return the receipt, saved where it was asked for; raise the trap if there is one."""
    proof = b64decode(done["receipt"])
    if receipt is not None:
        write_whole(Path(receipt), [proof])
    if done["trap"] is not None:
        raise _trap(done["trap"])
    return proof


def _trap(told: Document) -> XscError:
    return from_code(told["code"], told["detail"], told.get("hint", ""))


def _line(arguments: Sequence[str]) -> str:
    if any(len(text.split()) != 1 for text in arguments):
        raise ArgumentInvalid("an argument is empty or holds a space: it can be no number")
    return " ".join(arguments) + "\n"


async def _gathered(
    calls: AsyncIterable[Sequence[str]] | Iterable[Sequence[str]], most: int
) -> AsyncIterator[bytes]:
    """Yield the lines of up to that many calls at once."""
    lines: list[str] = []
    if isinstance(calls, AsyncIterable):
        async for call in calls:
            lines.append(_line(call))
            if len(lines) == most:
                yield "".join(lines).encode()
                lines.clear()
    else:
        for call in calls:
            lines.append(_line(call))
            if len(lines) == most:
                yield "".join(lines).encode()
                lines.clear()
    if lines:
        yield "".join(lines).encode()
