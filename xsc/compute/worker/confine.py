"""Takes from this process what a sandbox worker does not need; there is no way back.

The worker runs as the user whose key file lies in the home, so a program that
broke out of the engine must find nothing: no file can be opened (no descriptor
is left to open it with, and landlock denies every path where the kernel has
it), no socket made, no program started, no privilege gained, no other process
traced, no core written, no more memory had than the bound.

Everything here works on the calling thread and on those it starts later, so it
is done before any other thread exists. What could be done is reported: the
operator sees it in `xsc node status`.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal

from xsc.base.limits import WORKER_ADDRESS_BYTES

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT, _LANDLOCK_ASK_VERSION = 444, 446, 1
_CAPABILITY_VERSION = 0x20080522
_DESCRIPTORS = 3
"""stdin, stdout and stderr are open; the limit leaves no number for a fourth."""


def _landlock(libc: ctypes.CDLL) -> int:
    """Deny every path, port and signal that landlock can deny; return its version, or 0."""
    version: int = libc.syscall(_LANDLOCK_CREATE, None, 0, _LANDLOCK_ASK_VERSION)
    if version < 1:
        return 0
    files = (1 << (13, 14, 15, 15, 16)[min(version, 5) - 1]) - 1
    network, scopes = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = (ctypes.c_uint64 * 3)(files, network, scopes)
    handle: int = libc.syscall(_LANDLOCK_CREATE, rules, size, 0)
    if handle < 0:
        return 0
    denied = libc.syscall(_LANDLOCK_RESTRICT, handle, 0) == 0
    os.close(handle)
    return version if denied else 0


def _drop_capabilities(libc: ctypes.CDLL) -> bool:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    return bool(libc.capset(header, (ctypes.c_uint32 * 6)()) == 0)


def die_with_parent() -> None:
    """Have this process killed when the one ends that started it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def confine() -> dict[str, int]:
    """Give everything up and return what was given up: 1 or a version where it worked, else 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    report = {
        "dies_with_parent": int(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0),
        "no_new_privileges": int(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0),
        "not_traceable": int(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0),
    }
    # Landlock needs a descriptor for its rules: before none is left.
    report["landlock"] = _landlock(libc)
    os.closerange(_DESCRIPTORS, 1024)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, _DESCRIPTORS))
    resource.setrlimit(resource.RLIMIT_AS, (WORKER_ADDRESS_BYTES, WORKER_ADDRESS_BYTES))
    report["no_descriptors"] = 1
    report["capabilities_dropped"] = int(_drop_capabilities(libc))
    return report


def no_more_threads() -> None:
    """Forbid new processes and threads (the kernel does not hold root to it)."""
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
