"""Folders in which the doctor tries a disk; those of doctors that were killed are removed.

One stands in the home itself, or in the nearest directory above that is there: only so it
is on the disk that is meant. It is locked while it is used, so that one that was left can be
told apart, and nothing else of such a name is touched.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_PREFIX = ".xsc-doctor-"
_NAME = re.compile(re.escape(_PREFIX) + r"[a-z0-9_]{8}")
DATABASE = "db"
SYNCED = "sync"
_MADE = frozenset({DATABASE, SYNCED})


@contextmanager
def trial_in(place: Path) -> Iterator[Path]:
    """Make a folder in a directory, and remove it again, with what killed doctors left there."""
    drop_left(place)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    with ExitStack() as stack:
        # Not every filesystem locks directories; what is left there cannot be told apart.
        with suppress(OSError):
            stack.enter_context(_locked(folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def drop_left(place: Path) -> None:
    """Remove the folders that killed doctors left in a directory, and nothing else.

    Raises:
        OSError: the directory cannot be read.
    """
    for folder in [entry for entry in place.iterdir() if _NAME.fullmatch(entry.name)]:
        # Another may use it, or remove it at the same moment.
        with suppress(OSError), _locked(folder):
            if _is_ours(folder):
                shutil.rmtree(folder)


def _is_ours(folder: Path) -> bool:
    about = folder.stat()
    return (
        about.st_uid == os.geteuid()
        and stat.S_IMODE(about.st_mode) == 0o700
        and {entry.name for entry in folder.iterdir()} <= _MADE
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a directory, and no link to one.

    Raises:
        OSError: it is none, it is gone, or somebody else holds it.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
