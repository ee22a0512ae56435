"""Every call of the node API, one method each, as plain JSON documents.

Checks here are those that the node cannot make: what would not survive the
way there (a header, a path), and files of this side. All else is the node's
to judge, so that there is one opinion.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from xsc import api
from xsc.api.endpoint import Id, Nothing
from xsc.api.ranges import UNIT, check_range
from xsc.base.errors import (
    ArgumentInvalid,
    CapabilityInvalid,
    ModuleUnknown,
    NodeUnreachable,
    PeerUnknown,
    TooLarge,
)
from xsc.base.jobs import JobResult, JobSpec
from xsc.base.limits import MODULE_BYTES_MAX, MODULE_NAMED_BYTES_LEAST, TIMEOUT_MS_MAX
from xsc.client.core import (
    ANSWER_TIMEOUT_S,
    Core,
    Document,
    Download,
    Progress,
    ignore_progress,
    problem_of,
)
from xsc.client.partial import Watch, fetch

DEEP_TIMEOUT_S = 24 * 3600.0
"""A deep check reads six times a quarter of the object before it answers."""
JOB_GRACE_S = 120.0
"""Beside the job's own time: its place in the queue, the market, the way there and back."""
FSCK_TIMEOUT_S = 7 * 86_400.0
"""All of a large disk is read."""
Show = Callable[[int, bytes], None]
"""Given what a program writes, and to which stream."""
_CAPABILITY = re.compile(r"[\x21-\x7e]{1,4096}")
_PEER = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,64}")


def read_file(path: Path, what: str, size_max: int) -> bytes:
    """Return a file that must fit in memory.

    Raises:
        ArgumentInvalid: it cannot be read.
        TooLarge: it has more than `size_max` bytes.
    """
    try:
        with path.open("rb") as file:
            return read_bounded(file, what, size_max)
    except OSError as fault:
        raise unreadable(path, what, fault) from None


def unreadable(path: Path, what: str, fault: OSError) -> ArgumentInvalid:
    """Return the error for a file that cannot be read."""
    if isinstance(fault, FileNotFoundError):
        return ArgumentInvalid(f"there is no file {path}")
    if isinstance(fault, IsADirectoryError):
        return ArgumentInvalid(f"{path} is a directory, not a file")
    return ArgumentInvalid(f"the {what} {path} cannot be read: {fault.strerror}")


def read_bounded(
    source: BinaryIO, what: str, size_max: int, *, hint: str = "give a smaller one"
) -> bytes:
    """Return all of a stream that must fit in memory.

    Raises:
        TooLarge: it has more than `size_max` bytes.
    """
    data = source.read(size_max + 1)
    if len(data) > size_max:
        raise TooLarge(f"the {what} has more than {size_max} bytes", hint=hint)
    return data


def read_module(path: Path) -> bytes:
    """Return a module's bytes.

    Raises:
        ArgumentInvalid, TooLarge: as `read_file`.
    """
    return read_file(path, "module", MODULE_BYTES_MAX)


def named_first(module: bytes, send: Callable[[str | None, bytes], Document]) -> Document:
    """Return what the node answers to a request that names a large module, or brings it.

    Args:
        module: sent where it is small, or where the node does not have it.
        send: given the name of the module where it is named, and the bytes to send.
    """
    if len(module) >= MODULE_NAMED_BYTES_LEAST:
        try:
            return send(hashlib.sha256(module).hexdigest(), b"")
        except ModuleUnknown:
            pass  # nothing was done
    return send(None, module)


def _capability(text: str) -> str:
    if not _CAPABILITY.fullmatch(text):
        raise CapabilityInvalid(
            "that is no capability: one is a single word of plain characters",
            hint="`xsc store ls` shows yours",
        )
    return text


def _name(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ArgumentInvalid("the name of the object is not Unicode text") from None
    return text


def _peer(who: str) -> str:
    if not _PEER.fullmatch(who):
        raise PeerUnknown(
            f"there is no peer '{who}'", hint="`xsc peer ls` shows names and ids of peers"
        )
    return who


def _id(text: str, pattern: str, what: str, hint: str) -> str:
    if not re.fullmatch(pattern, text):
        raise ArgumentInvalid(f"'{text[:80]}' is no {what}", hint=hint)
    return text


class Calls:
    """The calls of one node."""

    def __init__(self, core: Core) -> None:
        self.core = core

    # Objects

    def put(
        self,
        source: BinaryIO,
        *,
        name: str = "",
        size_bytes: int | None = None,
        survive: str = "",
        code: tuple[int, int] | None = None,
        resume: str | None = None,
        part: str = "",
        wait_for_name: bool = False,
        progress: Progress = ignore_progress,
    ) -> Document:
        """Store a stream; return what `POST /v1/objects` says of it.

        With `wait_for_name` it returns once the name is at as many peers as the code has data
        shards, so that a recovery knows it, or with a warning.

        With an id of an upload (`xsc.client.files.upload_id`), a put of that id that broke
        off goes on: the stream is read from its beginning, what is stored is not sent again.

        Raises:
            UploadChanged: the put that broke off had another content; it is gone now.
        """
        asked = api.objects.Put(
            name=_name(name),
            size_bytes=size_bytes,
            survive=survive or None,
            code=None if code is None else f"{code[0]},{code[1]}",
            resume=resume,
            part=part or None,
            wait_for_name=wait_for_name,
        )
        return self.core.upload(api.objects.PUT, asked, source, progress)

    def upload(self, upload_id: str) -> Document:
        """Return how many bytes of an upload that broke off are stored: `stored_bytes`."""
        return self.core.ask(api.objects.UPLOAD, Id(id=upload_id))

    def open(self, capability: str, part: str | None = None) -> Download:
        """Return an object's content as a stream, to be used in a `with`.

        Args:
            capability: of the object.
            part: the range that is wanted, like "1000-1999", "1000-" or "-500".

        Raises:
            ArgumentInvalid, RangeUnsatisfiable: not a range, or none of this object.
        """
        wanted = None if part is None else UNIT + check_range(part)
        asked = api.objects.Get(capability=_capability(capability), range=wanted)
        download = self.core.download(api.objects.GET, asked)
        if part is not None and download.part is None:
            download.close()
            raise NodeUnreachable("the node did not send a range")
        return download

    def get(self, capability: str, path: Path, progress: Progress = ignore_progress) -> int:
        """Write an object to a file, whole or not at all; return its size in bytes.

        What an interrupted call has left beside the file is continued.
        """
        return self.fetch(capability, path, lambda _: nullcontext(progress))

    def fetch(self, capability: str, path: Path, watch: Watch) -> int:
        """Do what `get` does; `watch` is told the size and gives who is told of progress."""
        return fetch(lambda part: self.open(capability, part), capability, path, watch)

    def objects(self, prefix: str = "", *, versions: bool = False) -> Document:
        """Return the objects that this node has stored: the newest of each name, or all."""
        asked = api.objects.Under(prefix=_name(prefix), versions=versions)
        return self.core.ask(api.objects.LIST, asked)

    def parts(self, tree: str) -> Sequence[Document]:
        """Return the files that were stored for a directory: `part, capability, created_ms`."""
        return list(self.core.ask(api.objects.PARTS, api.objects.Directory(part=tree))["parts"])

    def restore(self, name: str, version: int) -> Document:
        """Make an older version of a name its newest; return its new `version`."""
        asked = api.objects.Name(name=_name(name), version=version)
        return self.core.ask(api.objects.RESTORE, asked)

    def named(
        self, name: str, version: int | None = None, *, deleting: bool = False
    ) -> Sequence[str]:
        """Return the capabilities of a name's versions, the newest first; or of one version.

        Args:
            name: as the object was stored.
            version: its number under the name.
            deleting: also those whose deletion some host has yet to confirm.
        """
        asked = api.objects.Versions(name=_name(name), version=version, deleting=deleting)
        return list(self.core.ask(api.objects.NAMED, asked)["capabilities"])

    def stat(self, capability: str) -> Document:
        """Ask the hosts of an object for its shards."""
        return self.core.ask(
            api.objects.STAT, api.objects.Capability(capability=_capability(capability))
        )

    def check(self, capability: str, *, deep: bool = False) -> Document:
        """Say what an object's placement is worth; `deep` has every shard read and verified."""
        return self.core.ask(
            api.objects.CHECK,
            api.objects.Check(capability=_capability(capability), deep=deep),
            timeout_s=DEEP_TIMEOUT_S if deep else ANSWER_TIMEOUT_S,
        )

    def repair(self, capability: str) -> Document:
        """Have the node look at an object now, and build again what is lost of it."""
        asked = api.objects.Capability(capability=_capability(capability))
        return self.core.ask(api.objects.REPAIR, asked, timeout_s=DEEP_TIMEOUT_S)

    def remove(self, capability: str) -> Document:
        """Delete an object at all of its hosts."""
        return self.core.ask(
            api.objects.REMOVE, api.objects.Capability(capability=_capability(capability))
        )

    # Jobs

    def job(self, spec: JobSpec, show: Show | None = None) -> JobResult:
        """Run a job; what ended it before its end is the result's `trap`.

        Args:
            spec: the job.
            show: given what a program writes while it runs, with 1 for standard output or 2 for
                standard error; the result holds none of it then.
        """

        def send(module: str | None, brought: bytes) -> Document:
            asked = api.jobs.request_of(spec, module, len(brought))
            job_ms = min(spec.timeout_ms or TIMEOUT_MS_MAX, TIMEOUT_MS_MAX)
            waits_ms = min(spec.wait_ms, TIMEOUT_MS_MAX)
            return self._send_job(
                asked, (brought, spec.stdin), (job_ms + waits_ms) / 1000 + JOB_GRACE_S, show
            )

        return api.jobs.read_result(spec.mode, named_first(spec.module, send))

    def _send_job(
        self, asked: api.jobs.Job, parts: Sequence[bytes], timeout_s: float, show: Show | None
    ) -> Document:
        if show is None:
            return self.core.ask(api.jobs.RUN, asked, *parts, timeout_s=timeout_s)
        for line in self.core.lines(api.jobs.STREAM, asked, *parts, timeout_s=timeout_s):
            if "result" in line:
                return dict(line["result"])
            if "problem" in line:
                raise problem_of(line["problem"])
            for name, data in line.items():
                show(2 if name == "stderr" else 1, b64decode(data))
        raise NodeUnreachable("the node broke off its answer", hint="see the node's log")

    def evidence(self) -> Document:
        """Return what providers signed that cannot be true."""
        return self.core.ask(api.jobs.EVIDENCE, Nothing())

    def evidence_record(self, evidence_id: str) -> Download:
        """Return one signed record of it as a file for `xsc verify`, to be used in a `with`."""
        hint = "`xsc compute evidence` shows them"
        found = _id(evidence_id, r"[a-z0-9]{1,64}", "evidence id", hint)
        return self.core.download(api.jobs.EVIDENCE_RECORD, Id(id=found))

    # Peers

    def peers(self) -> Document:
        """Return all known peers."""
        return self.core.ask(api.peers.LIST, Nothing())

    def invite(self, ttl_ms: int | None = None) -> Document:
        """Return an invitation to this node, good for one peer."""
        asked = api.peers.Invite() if ttl_ms is None else api.peers.Invite(ttl_ms=ttl_ms)
        return self.core.ask(api.peers.INVITE, asked)

    def join(self, invitation: str, name: str | None = None) -> Document:
        """Accept another node's invitation."""
        return self.core.ask(api.peers.JOIN, api.peers.Join(invitation=invitation, name=name))

    def recognise(self, who: str, weight_ppm: int) -> Document:
        """Set how much this node recognises a peer."""
        asked = api.peers.Recognise(who=_peer(who), weight_ppm=weight_ppm)
        return self.core.ask(api.peers.RECOGNISE, asked)

    def rename(self, who: str, name: str) -> Document:
        """Call a peer otherwise on this node."""
        return self.core.ask(api.peers.RENAME, api.peers.Rename(who=_peer(who), name=name))

    def confirm(self, who: str) -> Document:
        """Answer for an introduced peer as for an invited one."""
        return self.core.ask(api.peers.CONFIRM, api.peers.Who(who=_peer(who)))

    def block(self, who: str) -> Document:
        """Refuse a peer everything from now on."""
        return self.core.ask(api.peers.BLOCK, api.peers.Who(who=_peer(who)))

    def forget(self, who: str) -> Document:
        """Remove a peer."""
        return self.core.ask(api.peers.REMOVE, api.peers.Who(who=_peer(who)))

    # The rest

    def status(self) -> Document:
        """Return what the node says of itself."""
        return self.core.ask(api.status.STATUS, Nothing())

    def leave(self) -> Document:
        """Have the node begin to move away all that it holds for others."""
        return self.core.ask(api.home.LEAVE, Nothing())

    def drain(self, wait_ms: int = 0) -> Document:
        """Return how far the node is with leaving.

        Args:
            wait_ms: how long to wait for the node's next count at most.
        """
        return self.core.ask(api.home.DRAIN, api.home.Look(wait_ms=wait_ms))

    def stay(self) -> Document:
        """Have the node stay after all."""
        return self.core.ask(api.home.STAY, Nothing())

    def drain_proof(self) -> Download:
        """Return what proves where everything lies now, to be used in a `with`."""
        return self.core.download(api.home.PROOF, Nothing())

    def backup(self, *, identity: bool, bodies: bool) -> Download:
        """Return a backup of the node as a stream, to be used in a `with`."""
        return self.core.download(
            api.home.BACKUP, api.home.Backup(identity=identity, bodies=bodies)
        )

    def fsck(self, *, deep: bool) -> Document:
        """Have the node compare its index with all bodies; takes as long as reading them."""
        return self.core.ask(api.home.FSCK, api.home.Fsck(deep=deep), timeout_s=FSCK_TIMEOUT_S)

    def collect_garbage(self) -> Document:
        """Have the node drop what it need not keep, and give room back to the disk."""
        return self.core.ask(api.home.GC, Nothing(), timeout_s=FSCK_TIMEOUT_S)

    def damaged(self) -> Document:
        """Return the bodies that the node knows to be damaged."""
        return self.core.ask(api.home.DAMAGED, Nothing())

    def quotes(self) -> Document:
        """Ask all peers for their prices."""
        return self.core.ask(api.market.QUOTES, Nothing())

    def estimate(self, **asked: Any) -> Document:  # noqa: ANN401
        """Return what storage or fuel would cost at the prices quoted now.

        Args:
            asked: `size_bytes`, `duration_ms` and `code`; `fuel` and `memory_bytes`.
        """
        return self.core.ask(api.market.ESTIMATE, api.market.Estimate(**asked))

    def leases(self) -> Document:
        """Return the leases of this node, in both roles."""
        return self.core.ask(api.market.LEASES, Nothing())

    def lease(self, lease_id: str, *, denial: bool = False) -> Download:
        """Return one signed lease or its denial as a file for `xsc verify`.

        To be used in a `with`.
        """
        found = _id(lease_id, r"[a-z0-9]{1,64}", "lease id", "`xsc market leases` shows them")
        asked = api.market.LeaseId(id=found, denial=denial)
        return self.core.download(api.market.LEASE, asked)

    def account(self, who: str, *, count: bool = False) -> Download:
        """Return the newest voucher for a provider, or the count that it pays, as a file.

        To be used in a `with`.
        """
        return self.core.download(api.market.ACCOUNT, api.market.AccountId(id=who, count=count))

    def settle(self) -> Document:
        """Settle now what is owed by leases."""
        return self.core.ask(api.ledger.SETTLE, Nothing())

    def settle_off_books(self, who: str, amount_micro: int) -> Document:
        """Say that what one of two nodes owes the other was paid off the books, so much of it."""
        asked = api.ledger.Payment(peer=who, amount_micro=amount_micro)
        return self.core.ask(api.ledger.OFF_BOOKS, asked)

    def balances(self) -> Document:
        """Return what this node and each peer owe one another."""
        return self.core.ask(api.ledger.BALANCE, Nothing())

    def entries(self, limit: int, before: int | None = None) -> Document:
        """Return the newest ledger entries, or the newest of those before one."""
        return self.core.ask(api.ledger.LOG, api.ledger.Page(limit=limit, before=before))

    def set_limit(self, who: str, limit_micro: int) -> Document:
        """Set what a peer may owe this node at most."""
        return self.core.ask(api.ledger.LIMIT, api.ledger.Limit(peer=who, limit_micro=limit_micro))

    def verify_ledger(self) -> Document:
        """Replay the node's ledger and check every signature in it."""
        return self.core.ask(api.ledger.VERIFY, Nothing())

    def entry(self, entry_id: str) -> Download:
        """Return one settled entry as a file for `xsc verify`, to be used in a `with`."""
        hint = "`xsc ledger log --json` shows them"
        found = _id(entry_id, r"[a-z2-7]{52}", "entry id", hint)
        return self.core.download(api.ledger.ENTRY, Id(id=found))

    def health(self) -> Document:
        """Return what probes say of each peer."""
        return self.core.ask(api.status.HEALTH, Nothing())
