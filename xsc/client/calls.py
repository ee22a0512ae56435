"""Every call of the node API, one method each, as plain JSON documents.

Checks here are of files of this side. All else is the node's to judge, so that
there is one opinion.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO, Literal, TypedDict, TypeVar, Unpack

from xsc import api
from xsc.api.ranges import UNIT
from xsc.base import errors, jobs, limits
from xsc.base.progress import Progress, Watch, ignore_progress, unwatched
from xsc.client import core
from xsc.client.core import Core, Document
from xsc.client.files import fetch, opened, read_file, read_module, size_of, upload_id

DEEP_TIMEOUT_S = 24 * 3600.0
"""A deep check reads six times a quarter of the object before it answers."""
JOB_GRACE_S = 120.0
"""Beside the job's own time: its place in the queue, the market, the way there and back."""
FSCK_TIMEOUT_S = 7 * 86_400.0
"""All of a large disk is read."""
Show = Callable[[int, bytes], None]
"""Given what a program writes, and to which stream."""
T = TypeVar("T")
R = TypeVar("R")
LOOK_S = 2.0
"""Between two questions how far long work is."""
WORKERS = 8
"""Calls of one node under way at once, where one request takes several."""
Form = Literal["toml", "json"]
"""Of the document of a program."""


class PutOptions(TypedDict, total=False):
    """How an object is stored."""

    name: str | None
    """In the list of this node's objects; none where None, and of a file its own."""
    survive: str | None
    """The contract: refuse unless that may be lost, like "2nodes,1site"; the default where None."""
    code: str | None
    """K,M: K shards of K + M rebuild the object; 4,2 where None."""
    wait_for_name: bool
    """Return once so many peers have the list of names that a recovery knows this one."""


class DeployOptions(jobs.LimitOptions, total=False):
    """What is said of a service beside its module and name: also what a request may use."""

    version: str | None
    """How it is named; a number that rises where None."""
    env: Mapping[str, str] | None
    """The environment of each request."""
    concurrency: int | None
    """Requests at once."""
    on: str | None
    """The node that serves it; this one where None."""


def side_by_side(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Do something with each item, several at once; yield what came of it, in order.

    Raises:
        Exception: the first that was met; what has not begun by then is not begun.
    """
    with ThreadPoolExecutor(WORKERS) as pool:
        yield from pool.map(work, items)


def value_of(shown: str | dict[str, str]) -> bytes:
    """Return the bytes of a value that the node shows: text, or {"base64": text}."""
    return shown.encode() if isinstance(shown, str) else b64decode(shown["base64"])


def _named_first(module: bytes, send: Callable[[str | None, bytes], Document]) -> Document:
    """Return what the node answers to a request that names a large module, or brings it.

    Args:
        module: sent where it is small, or where the node does not have it.
        send: given the name of the module where it is named, and the bytes to send.
    """
    if len(module) >= limits.MODULE_NAMED_BYTES_LEAST:
        try:
            return send(hashlib.sha256(module).hexdigest(), b"")
        except errors.ModuleUnknown:
            pass  # nothing was done
    return send(None, module)


def follow(calls: Core, service: str, newest: int, wait_ms: int) -> Iterator[Document]:
    """Yield the newest rows of a service's log, and each one that comes, without end.

    Args:
        calls: the node.
        service: its name.
        newest: how many rows of before.
        wait_ms: how long one call waits for the next row.
    """
    rows = calls.ask(api.services.LOG, name=service, n=max(newest, 1))["requests"]
    after = 0
    yield from rows if newest else ()
    while True:
        after = rows[-1]["number"] if rows else after
        rows = calls.ask(api.services.LOG, name=service, after=after, wait_ms=wait_ms)["requests"]
        yield from rows


def read_document(path: Path) -> tuple[bytes, Form, dict[str, bytes]]:
    """Return the document of a file, its form, and the modules that it names, by their names.

    Modules are files beside the document. The node says what is wrong with a document.

    Raises:
        ArgumentInvalid: a file cannot be read.
        TooLarge: the document or a module is over its bound.
    """
    raw = read_file(path, "document", limits.PROGRAM_DOCUMENT_BYTES_MAX)
    form: Form = "json" if path.suffix == ".json" else "toml"
    modules = {}
    for name in _modules(raw, form):
        try:
            beside = path.parent / name
            if beside.is_file():
                modules[name] = read_module(beside)
        except ValueError:  # no name of a file
            continue
    return raw, form, modules


def _modules(raw: bytes, form: Form) -> list[str]:
    import tomllib  # noqa: PLC0415 - documents of programs alone need it

    try:
        text = raw.decode()
        found: Any = tomllib.loads(text) if form == "toml" else json.loads(text)
        calls = [item.get("function") for item in found["computations"].values()]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return []
    names = (call.get("module") for call in calls if isinstance(call, dict))
    return sorted({name for name in names if isinstance(name, str) and name})


class Calls(Core):
    """The calls of one node, and beside `ask` those that take more than one request to say."""

    # Objects

    def put(
        self,
        source: BinaryIO,
        *,
        size_bytes: int | None = None,
        resume: str | None = None,
        part: str | None = None,
        progress: Progress = ignore_progress,
        **how: Unpack[PutOptions],
    ) -> Document:
        """Store a stream; return what `POST /v1/objects` says of it.

        With `wait_for_name` it returns once the name is at as many peers as the code has data
        shards, so that a recovery knows it, or with a warning.

        With an id of an upload (`xsc.client.files.upload_id`), a put of that id that broke
        off goes on: the stream is read from its beginning, what is stored is not sent again.

        Raises:
            UploadChanged: the put that broke off had another content; it is gone now.
        """
        said = {"size_bytes": size_bytes, "resume": resume, "part": part, **how}
        return self.upload(api.objects.PUT, source, progress, **said)

    def put_file(
        self,
        path: Path,
        *,
        watch: Watch = unwatched,
        goes_on: Callable[[int], None] | None = None,
        **how: Unpack[PutOptions],
    ) -> Document:
        """Store a file, by its own name where none is given; one that broke off goes on.

        Args:
            path: of the file.
            watch: of the bytes that are read.
            goes_on: told how many bytes were stored before.
            how: as for `put`.

        Raises:
            ArgumentInvalid: it cannot be read.
        """
        with opened(path) as source:
            size = size_of(source)
            name = how["name"] = path.name if how.get("name") is None else how["name"]
            resume = upload_id(path, source, name, how.get("survive"), how.get("code"))

            def send() -> Document:
                with watch(size) as progress:
                    if goes_on is not None and resume is not None:
                        goes_on(self.ask(api.objects.UPLOAD, id=resume)["stored_bytes"])
                    return self.put(
                        source, size_bytes=size, resume=resume, progress=progress, **how
                    )

            try:
                return send()
            except errors.UploadChanged:
                # Other content under the same size and time; what was stored of it is gone.
                source.seek(0)
                return send()

    def open(self, capability: str, part: str | None = None) -> core.Download:
        """Return an object's content as a stream, to be used in a `with`.

        Args:
            capability: of the object.
            part: the range that is wanted, like "1000-1999", "1000-" or "-500".

        Raises:
            ArgumentInvalid, RangeUnsatisfiable: not a range, or none of this object.
        """
        wanted = None if part is None else UNIT + part
        download = self.download(api.objects.GET, capability=capability, range=wanted)
        if part is not None and download.part is None:
            download.close()
            raise errors.NodeUnreachable("the node did not send a range")
        return download

    def get(self, capability: str, path: Path, watch: Watch = unwatched) -> int:
        """Write an object to a file, whole or not at all; return its size in bytes.

        What an interrupted call has left beside the file is continued.
        """
        return fetch(lambda part: self.open(capability, part), capability, path, watch)

    def read_together(self, capabilities: Sequence[str]) -> list[bytes]:
        """Return all of some small objects, in one call."""
        answer = self.ask(api.objects.CONTENTS, capabilities=list(capabilities))
        return list(map(b64decode, answer["contents"]))

    def objects(self, prefix: str = "", *, versions: bool = False) -> Document:
        """Return the objects that this node has stored: the newest of each name, or all."""
        return self.ask(api.objects.LIST, prefix=prefix, versions=versions)

    def parts(self, tree: str) -> Sequence[Document]:
        """Return the files that were stored for a directory: `part, capability, created_ms`."""
        return list(self.ask(api.objects.PARTS, part=tree)["parts"])

    def named(
        self, name: str, version: int | None = None, *, deleting: bool = False
    ) -> Sequence[str]:
        """Return the capabilities of a name's versions, the newest first; or of one version.

        Args:
            name: as the object was stored.
            version: its number under the name.
            deleting: also those whose deletion some host has yet to confirm.
        """
        found = self.ask(api.objects.NAMED, name=name, version=version, deleting=deleting)
        return list(found["capabilities"])

    def stat(self, capability: str, watch: Watch = unwatched) -> Document:
        """Ask the hosts of an object for its shards."""
        with watch(None):
            return self.ask(api.objects.STAT, capability=capability)

    def check(
        self, capability: str, watch: Watch = unwatched, *, deep: bool = False, prove: bool = False
    ) -> Document:
        """Say what an object's placement is worth.

        `deep` has every shard read and verified, `prove` each host prove that it has its part.
        """
        said: Any = {"capability": capability, "deep": deep, "prove": prove}
        if deep:
            return self._watched(api.objects.CHECK, watch, DEEP_TIMEOUT_S, **said)
        with watch(None):
            how_long = DEEP_TIMEOUT_S if prove else core.ANSWER_TIMEOUT_S
            return self.ask(api.objects.CHECK, timeout_s=how_long, **said)

    def repair(self, capability: str) -> Document:
        """Have the node look at an object now, and build again what is lost of it."""
        return self.ask(api.objects.REPAIR, timeout_s=DEEP_TIMEOUT_S, capability=capability)

    def remove(self, capability: str) -> Document:
        """Delete an object at all of its hosts."""
        return self.ask(api.objects.REMOVE, capability=capability)

    def fsck(self, watch: Watch = unwatched, *, deep: bool = False) -> Document:
        """Have the node check its own databases; `deep` checks every root and hash."""
        return self._watched(api.home.FSCK, watch, FSCK_TIMEOUT_S, deep=deep)

    def _watched(
        self,
        endpoint: core.Asked,
        watch: Watch,
        timeout_s: float,
        **said: Any,  # noqa: ANN401
    ) -> Document:
        """Return the answer to a request for long work, and meanwhile watch how far that is.

        What watching raises ends the waiting, not the work.
        """
        work, found = secrets.token_hex(8), list[Document | errors.XscError]()

        def ask() -> None:
            try:
                found.append(self.ask(endpoint, timeout_s=timeout_s, work=work, **said))
            except errors.XscError as fault:
                found.append(fault)

        asking, done, total = Thread(target=ask, daemon=True), 0, None
        asking.start()
        with ExitStack() as stack:
            progress = stack.enter_context(watch(None))
            asking.join(LOOK_S)
            while asking.is_alive():
                rows: list[Document] = []
                with suppress(errors.XscError):  # of what is wrong the answer tells
                    rows = self.ask(api.monitor.WORK)["work"]
                for row in (row for row in rows if row["id"] == work):
                    if total is None:
                        total = row["total_bytes"]
                        stack.close()
                        progress = stack.enter_context(watch(total))
                    progress(row["done_bytes"] - done)
                    done = row["done_bytes"]
                progress(0)  # also where nothing is known: who waits may be gone
                asking.join(LOOK_S)
        (answer,) = found
        if isinstance(answer, errors.XscError):
            raise answer
        return answer

    # Jobs

    def job(self, spec: jobs.JobSpec, show: Show | None = None) -> jobs.JobResult:
        """Run a job; what ended it before its end is the result's `trap`.

        Args:
            spec: the job.
            show: given what a program writes while it runs, with 1 for standard output or 2 for
                standard error; the result holds none of it then.
        """

        def send(module: str | None, brought: bytes) -> Document:
            said = api.jobs.request_of(spec, module, len(brought))
            job_ms = min(spec.timeout_ms or limits.TIMEOUT_MS_MAX, limits.TIMEOUT_MS_MAX)
            waits_ms = min(spec.wait_ms, limits.TIMEOUT_MS_MAX)
            timeout_s = (job_ms + waits_ms) / 1000 + JOB_GRACE_S
            return self._send_job(said, (brought, spec.stdin), timeout_s, show)

        return api.jobs.read_result(spec.mode, _named_first(spec.module, send))

    def _send_job(
        self, said: Document, parts: Sequence[bytes], timeout_s: float, show: Show | None
    ) -> Document:
        if show is None:
            return self.ask(api.jobs.RUN, *parts, timeout_s=timeout_s, **said)
        with self.events(api.jobs.STREAM, *parts, timeout_s=timeout_s, **said) as lines:
            for line in lines:
                if "result" in line:
                    return dict(line["result"])
                if "problem" in line:
                    raise core.problem_of(line["problem"])
                for name, data in line.items():
                    show(2 if name == "stderr" else 1, b64decode(data))
        raise AssertionError

    def deploy(self, module: bytes, name: str, **how: Unpack[DeployOptions]) -> Document:
        """Make a module a service, or the next version of one."""

        def send(named: str | None, brought: bytes) -> Document:
            said: Document = {**how, "module": named, "module_bytes": len(brought)}
            return self.ask(api.services.DEPLOY, brought, name=name, **said)

        return _named_first(module, send)

    # Programs

    def register(
        self, document: bytes, form: Form, modules: Mapping[str, bytes], *, activate: bool = False
    ) -> Document:
        """Register a program, and activate it if asked; return its results."""
        named = [api.programs.Module(name=name, size_bytes=len(modules[name])) for name in modules]
        return self.ask(
            api.programs.REGISTER,
            document,
            *modules.values(),
            form=form,
            document_bytes=len(document),
            modules=named,
            activate=activate,
        )
