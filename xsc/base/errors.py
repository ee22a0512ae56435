"""The whole error tree. The branch says whose fault it is, hence what to do.

    XscError                      exit  HTTP  what to do
    ├── CallerError                2    4xx   mend the request
    │   ├── ArgumentInvalid            a value of the call is malformed
    │   ├── ConfigInvalid              file, variable or flag holds a wrong value
    │   ├── CapabilityInvalid          the capability string is malformed
    │   ├── RangeUnsatisfiable         no byte of the object lies in the range
    │   ├── UploadChanged              not the content that a put had begun with
    │   ├── ObjectUnknown              no such object, here or at any peer
    │   ├── PeerUnknown                no such peer
    │   ├── PeerBlocked                the peer was blocked by the operator
    │   ├── InvitationInvalid          malformed, expired or already used
    │   ├── Unauthorized               no or wrong credentials
    │   ├── NotFound                   no such path
    │   ├── NotAllowed                 known, but not permitted
    │   ├── HomeInvalid                the home is missing, foreign or too new
    │   ├── HomeLocked                 another node runs on this home
    │   ├── IdentityInvalid            the key file is missing, readable by others or damaged
    │   ├── ModuleInvalid              not a WebAssembly module that can run here
    │   ├── ModuleUnknown              the provider does not have the module; send it along
    │   ├── InputUnavailable           the provider cannot read an input; send it along
    │   ├── JobUnfinished              an order still runs; ask for it alone
    │   ├── ExportUnknown              the module has no such function
    │   ├── SignatureMismatch          arguments do not fit the function
    │   ├── Cancelled                  whoever asked for the run ended it
    │   ├── ModuleTrapped              the program failed by itself (division by zero, …)
    │   ├── DurabilityUnreachable      the durability asked for cannot be met
    │   └── ProgramInvalid             a program's document does not parse or compile
    ├── PeerError                  3    502   lower the peer's standing
    │   ├── SignatureInvalid           a signature or its author does not fit
    │   ├── ReplayRefused              a request seen before, or from before the start
    │   ├── ClockSkewed                the two clocks differ by more than the window
    │   ├── RecordInvalid              a signed record breaks its schema
    │   ├── FrameInvalid               a message breaks its framing
    │   ├── ShardMismatch              a shard does not have the root it should have
    │   ├── ReceiptInvalid             a receipt does not say what was agreed
    │   ├── NoAgreement                providers contradict each other, too few agree
    │   └── EntryRefused               the peer refused a ledger entry
    ├── LimitError                 4    413,402,429,507   a budget is used up
    │   ├── TooLarge                   longer than the bound of its place
    │   ├── RateLimited                too many requests at once or a second
    │   ├── SpaceExhausted             no room left
    │   ├── ComputeExhausted           no fuel left that could be promised
    │   ├── CreditExceeded             the debt limit would be passed
    │   ├── LeaseExhausted             the lease is spent
    │   ├── FuelExhausted   ├── MemoryExceeded   ├── TimeExceeded
    │   ├── StackExhausted  ├── OutputTooLarge   ├── CompileLimit
    │   └── WorkerLost                 the program ended the process that ran it
    ├── UnavailableError           5    503   try again later
    │   ├── NodeUnreachable            the node of this home does not answer
    │   ├── PeerSilent                 a peer does not answer
    │   ├── PeerLeaving                a peer leaves the network and takes nothing new
    │   ├── ShardsInsufficient         fewer than k shards can be fetched
    │   ├── NoOffers                   nobody offers what is needed
    │   ├── SandboxFailed              no worker process could take the run
    │   └── Recovering                 recovers what it lost, signs nothing yet
    └── CorruptionError            6    500   our own data fails its check
        ├── ShardsDamaged              shards of an object are damaged or gone
        ├── StoreDamaged               a database or a record in it is damaged
        ├── LedgerDamaged              the ledger does not replay
        └── ProofInvalid               a file given to `xsc verify` is wrong

Exit 0 is done, 1 a bug in XSC, 7 partly done, 130 interrupted (docs/cli.md).
A leaf's name in snake case is its `code`: the same word on the command line,
in problem documents and in logs.
"""

from __future__ import annotations

import errno
import re
from typing import ClassVar

from xsc.base.text import printable

EXIT_BUG = 1
EXIT_PARTLY = 7
EXIT_INTERRUPTED = 130


class XscError(Exception):
    """An error that XSC expects: one sentence for people, and a hint where one helps.

    Both are printable whatever they name: modules, peers and files choose names that a
    terminal would obey.
    """

    exit_code: ClassVar[int] = EXIT_BUG
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""
    retry_after_s: int = 0
    """When trying again makes sense, as HTTP's Retry-After; 0 where nobody can say."""

    def __init__(self, message: str, *, hint: str = "", retry_after_s: int | None = None) -> None:
        self.message = printable(message)
        self.hint = printable(hint or self.default_hint)
        super().__init__(self.message)
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s

    @property
    def code(self) -> str:
        """The class's name in snake case, stable across releases."""
        return code_of(type(self))


def code_of(kind: type[XscError]) -> str:
    """Return the stable code of an error class: `FuelExhausted` gives `fuel_exhausted`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


class CallerError(XscError):
    """The request is wrong; sending it again unchanged cannot help."""

    exit_code = 2
    http_status = 400


class ArgumentInvalid(CallerError):
    """A value of the call is malformed or out of range."""


class ConfigInvalid(CallerError):
    """A configuration file, variable or flag holds a wrong key or value."""


class CapabilityInvalid(CallerError):
    """The capability string is malformed."""


class RangeUnsatisfiable(CallerError):
    """No byte of the object lies in the range that was asked for."""

    http_status = 416


class UploadChanged(CallerError):
    """The content is not the one that a put which broke off had begun with."""

    http_status = 409


class ObjectUnknown(CallerError):
    """No such object, here or at any peer that answered."""

    http_status = 404


class PeerUnknown(CallerError):
    """No peer of that name or id."""

    http_status = 404


class PeerBlocked(CallerError):
    """The peer was blocked by the operator."""

    http_status = 403


class InvitationInvalid(CallerError):
    """The invitation is malformed, expired or already used."""

    http_status = 403


class Unauthorized(CallerError):
    """No or wrong credentials."""

    http_status = 401


class NotFound(CallerError):
    """No such path."""

    http_status = 404


class NotAllowed(CallerError):
    """The caller is known, but this is not its to do."""

    http_status = 403


class HomeInvalid(CallerError):
    """The home is missing, no XSC home, or of a newer format."""


class HomeLocked(CallerError):
    """Another node runs on this home."""


class IdentityInvalid(CallerError):
    """The key file is missing, readable by others, damaged or locked."""


class ModuleInvalid(CallerError):
    """The bytes are not a WebAssembly module that can run here."""

    http_status = 422


class ModuleUnknown(CallerError):
    """The provider does not have the module's bytes; the order must bring them."""

    http_status = 404


class InputUnavailable(CallerError):
    """The provider cannot read an object from where it is; the order must bring its content."""

    http_status = 404


class JobUnfinished(CallerError):
    """An order that came with others still runs, or its answer is too large to go with theirs."""

    http_status = 409


class ExportUnknown(CallerError):
    """The module has no function of that name."""

    http_status = 422


class SignatureMismatch(CallerError):
    """The arguments do not fit the function's signature."""

    http_status = 422


class Cancelled(CallerError):
    """Whoever asked for the run ended it."""

    http_status = 409


class ModuleTrapped(CallerError):
    """The program failed by itself: division by zero, unreachable, bad access."""

    http_status = 422


class DurabilityUnreachable(CallerError):
    """The network at hand cannot give the durability that was asked for."""

    http_status = 409


class ProgramInvalid(CallerError):
    """A program's document is malformed, or does not compile; the message names the place."""

    http_status = 422


class PeerError(XscError):
    """A peer said or did something wrong."""

    exit_code = 3
    http_status = 502


class SignatureInvalid(PeerError):
    """A signature, or the key it is by, does not fit."""

    http_status = 401


class ReplayRefused(PeerError):
    """A request that was seen before, or was made before this node started."""

    http_status = 401
    retryable = True


class ClockSkewed(PeerError):
    """The two clocks differ by more than the window; the message says by how much."""

    http_status = 401


class RecordInvalid(PeerError):
    """A signed record breaks its schema, or is of a version not known here."""

    http_status = 422


class FrameInvalid(PeerError):
    """A message breaks its framing."""

    http_status = 400


class ShardMismatch(PeerError):
    """A shard does not have the Merkle root that it should have."""

    http_status = 422


class ReceiptInvalid(PeerError):
    """A receipt does not say what was agreed."""

    http_status = 422


class NoAgreement(PeerError):
    """Providers signed different outcomes of the same order, and too few agree."""


class EntryRefused(PeerError):
    """A ledger entry was refused; the message names the first rule broken."""

    http_status = 409


class LimitError(XscError):
    """A budget is used up."""

    exit_code = 4
    http_status = 429


class TooLarge(LimitError):
    """Longer than the bound of its place."""

    http_status = 413


class RateLimited(LimitError):
    """Too many requests in flight or a second."""

    retryable = True
    retry_after_s = 1


class SpaceExhausted(LimitError):
    """No room left for what was asked."""

    http_status = 507


class ComputeExhausted(LimitError):
    """More fuel was asked for than a node has left to promise."""


class CreditExceeded(LimitError):
    """The debt limit between two nodes would be passed."""

    http_status = 402


class LeaseExhausted(LimitError):
    """The lease is spent, over or not for this."""

    http_status = 402


class FuelExhausted(LimitError):
    """The program used all fuel that it was given."""


class MemoryExceeded(LimitError):
    """The program asked for more memory than it was given."""


class TimeExceeded(LimitError):
    """The program ran longer than it was allowed to."""


class StackExhausted(LimitError):
    """The program nested calls deeper than the stack allows."""


class OutputTooLarge(LimitError):
    """The program wrote more than it was allowed to."""


class CompileLimit(LimitError):
    """Compiling the module took more time or memory than allowed."""


class WorkerLost(LimitError):
    """The process that ran the program ended in the middle of the run."""


class UnavailableError(XscError):
    """Something needed does not answer; a later try may work."""

    exit_code = 5
    http_status = 503
    retryable = True


class NodeUnreachable(UnavailableError):
    """The node of this home does not answer."""


class PeerSilent(UnavailableError):
    """A peer does not answer in time."""


class PeerLeaving(UnavailableError):
    """A peer leaves the network, and takes nothing new."""


class ShardsInsufficient(UnavailableError):
    """Fewer than k shards of a segment can be fetched."""


class NoOffers(UnavailableError):
    """Nobody offers what is needed at a price within the reserve."""


class SandboxFailed(UnavailableError):
    """No worker process could take the run, or one that may not be tried again so soon."""


class Recovering(UnavailableError):
    """The node is recovering what it lost, and signs nothing until it has asked its peers."""


class CorruptionError(XscError):
    """Our own data fails its check; an operator must look."""

    exit_code = 6
    http_status = 500


class ShardsDamaged(CorruptionError):
    """Shards of an object are damaged or gone; what is left may still give it back."""


class StoreDamaged(CorruptionError):
    """A database, or a record in it, is damaged."""


class LedgerDamaged(CorruptionError):
    """The ledger does not replay to its state."""

    default_hint = "restore the home from a backup; the peers hold their halves of every entry"


class ProofInvalid(CorruptionError):
    """A file that should prove something does not; the message names the first fault."""


def leaves() -> list[type[XscError]]:
    """Return every error class that can be raised, in the order of the tree."""
    found: list[type[XscError]] = []
    for branch in XscError.__subclasses__():
        found.extend(branch.__subclasses__())
    return found


def unwritable(what: str, fault: OSError) -> XscError:
    """Return the error for something that the system did not write: a full disk is a limit."""
    if fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpaceExhausted(f"{what}: {fault.strerror}", hint="free space there, then try again")
    return ArgumentInvalid(f"{what}: {fault.strerror}")


def from_code(
    code: str, message: str, hint: str = "", *, retry_after_s: int | None = None
) -> XscError:
    """Return the error that a code names, as another process reported it.

    An unknown code gives a plain `XscError`, which exits as a bug: a node and
    its command line are of one release.
    """
    for kind in leaves():
        if code_of(kind) == code:
            return kind(message, hint=hint, retry_after_s=retry_after_s)
    return XscError(message, hint=hint)
