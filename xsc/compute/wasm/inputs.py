"""What a `run` is given, its bounds, and its hash.

The hash is over the hashes of the parts, so that an order binds gigabytes by 32
bytes and each part can be checked with standard tools.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from xsc.base.encoding import encode, tagged_sha256
from xsc.base.errors import ArgumentInvalid, TooLarge
from xsc.base.limits import (
    ARGUMENT_BYTES_MAX,
    ARGUMENTS_MAX,
    ENVIRONMENT_MAX,
    FILE_NAME_BYTES_MAX,
    INPUT_BYTES_MAX,
    OUTPUT_PATH_BYTES_MAX,
    STDIN_BYTES_MAX,
)

FILES_MAX = 128


@dataclass(frozen=True, slots=True)
class RunInput:
    """Everything that a program can read."""

    args: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    """Names and values, sorted by name."""
    stdin: bytes = b""
    files: tuple[tuple[str, bytes], ...] = ()
    """Names without a slash, and contents, sorted by name: /in/NAME."""

    @property
    def size_bytes(self) -> int:
        """What there is to hash; arguments and variables are bounded, and small."""
        return len(self.stdin) + sum(len(data) for _, data in self.files)


def check_input(given: RunInput) -> None:
    """Return if the input is within its bounds and well formed.

    Raises:
        ArgumentInvalid: a name or text that no program could be given.
        TooLarge: over a bound.
    """
    texts = [*given.args, *(f"{name}={value}" for name, value in given.environment)]
    names = [name for name, _ in given.files]
    if not all(map(_is_unicode, [*texts, *names])):
        raise ArgumentInvalid("an argument, a variable or a file's name is not Unicode text")
    if any("\0" in text for text in texts):
        raise ArgumentInvalid("an argument or a variable holds a NUL character")
    if len(given.args) > ARGUMENTS_MAX or len(given.environment) > ENVIRONMENT_MAX:
        raise TooLarge(f"more than {ARGUMENTS_MAX} arguments or {ENVIRONMENT_MAX} variables")
    if sum(len(text.encode()) + 1 for text in texts) > ARGUMENT_BYTES_MAX:
        raise TooLarge(f"arguments and variables are over {ARGUMENT_BYTES_MAX} bytes together")
    if any(not name or "=" in name for name, _ in given.environment):
        raise ArgumentInvalid("a variable's name is empty or holds '='")
    _check_sorted("variables", [name for name, _ in given.environment])
    if len(given.stdin) > STDIN_BYTES_MAX:
        raise TooLarge(f"the standard input is over {STDIN_BYTES_MAX} bytes")
    for name in names:
        size = len(name.encode())
        if "/" in name or "\0" in name or name in ("", ".", "..") or size > FILE_NAME_BYTES_MAX:
            raise ArgumentInvalid(f"'{name[:60]}' is no name for an input file")
    _check_sorted("input files", names)
    if len(names) > FILES_MAX:
        raise TooLarge(f"more than {FILES_MAX} input files")
    if sum(len(data) for _, data in given.files) > INPUT_BYTES_MAX:
        raise TooLarge(f"the input files are over {INPUT_BYTES_MAX} bytes together")


def _is_unicode(text: str) -> bool:
    """Say whether that is text: a shell hands over bytes that are none as lone surrogates."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def is_output_path(path: str) -> bool:
    """Say whether a program could have left a file there: a path below /out."""
    parts = path.split("/")
    if "\0" in path or len(path.encode()) > OUTPUT_PATH_BYTES_MAX:
        return False
    return all(
        part not in ("", ".", "..") and len(part.encode()) <= FILE_NAME_BYTES_MAX for part in parts
    )


def _check_sorted(what: str, names: list[str]) -> None:
    if any(a >= b for a, b in pairwise(names)):
        raise ArgumentInvalid(f"the {what} are not sorted, or one is there twice")


def digest_of(data: bytes) -> bytes:
    """Return by what a module, an input or an output is named: its SHA-256, 32 bytes."""
    return hashlib.sha256(data).digest()


def input_hash(
    given: RunInput, output_bytes: int, objects: Iterable[tuple[str, bytes]] = ()
) -> bytes:
    """Return the hash that an order names: of the input and of the bound of the output.

    `objects` are files of which only name and SHA-256 are at hand: the hash is the same.
    """
    if not (objects or given.files or given.stdin or given.args or given.environment):
        return _nothing_given(output_bytes)
    files = sorted([*objects, *((name, digest_of(data)) for name, data in given.files)])
    return _given(given.args, given.environment, digest_of(given.stdin), files, output_bytes)


def _given(
    args: Iterable[str],
    environment: Iterable[tuple[str, str]],
    stdin: bytes,
    files: Iterable[tuple[str, bytes]],
    output_bytes: int,
) -> bytes:
    value = encode(
        {
            "args": list(args),
            "environment": [[name, text] for name, text in environment],
            "stdin": stdin,
            "files": [[name, digest] for name, digest in files],
            "output_bytes": output_bytes,
        }
    )
    return tagged_sha256("compute-input", value)


@lru_cache(maxsize=64)
def _nothing_given(output_bytes: int) -> bytes:
    """Return the hash of every invocation with that bound, which is given nothing."""
    return _given((), (), digest_of(b""), (), output_bytes)


def output_hash(stdout: bytes, stderr: bytes, files: Iterable[tuple[str, bytes]]) -> bytes:
    """Return the hash that an outcome names: of all that a run gave back."""
    if not (stdout or stderr or files):
        return _NOTHING_LEFT
    return _left(stdout, stderr, files)


def _left(stdout: bytes, stderr: bytes, files: Iterable[tuple[str, bytes]]) -> bytes:
    value = encode(
        {
            "stdout": digest_of(stdout),
            "stderr": digest_of(stderr),
            "files": [[path, digest_of(data)] for path, data in files],
        }
    )
    return tagged_sha256("compute-output", value)


_NOTHING_LEFT = _left(b"", b"", ())
