"""WASI preview 1 as plain state: what a program is told, and what it may change.

Nothing here reaches the machine: arguments, environment, input and files are
given, the clock is virtual, random bytes follow from a seed, and a sleep only
moves the clock. (Where the order grants it, the clock is the machine's, and a
sleep moves it all the same.) So a run is a function of its job, and a second run gives the
same bytes.

Every call costs fuel: HOST_CALL_FUEL, one unit for each byte moved, and one for
each virtual millisecond slept; each entry that is listed or moved with its directory costs
LISTED_ENTRY_FUEL or MOVED_ENTRY_FUEL. Host calls would otherwise escape the meter
(docs/design/compute.md). A call that ends the run raises `Ended`, and the reason is
in the state: `exit_code` or `trap`.

Every function of preview 1 is here, so that any program links; signals answer
"not supported", and no descriptor is a socket.

Source: WASI preview 1, `wasi_snapshot_preview1.witx`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from xsc.base.limits import (
    HOST_CALL_FUEL,
    LISTED_ENTRY_FUEL,
    MOVED_ENTRY_FUEL,
    OUTPUT_FILES_MAX,
)
from xsc.compute.wasm.files import (
    SCRATCH_FILES_MAX,
    Directory,
    Errno,
    File,
    FileTree,
    Link,
    Node,
    QuotaExceeded,
    Refused,
    Volume,
)
from xsc.compute.wasm.signature import Signature

OPEN_FILES_MAX = 256

MODULE = "wasi_snapshot_preview1"
WORLD = 3
"""Counted up with every change here that a program could notice: receipts compare by it."""
_SHAPES = {
    "args_get": "ii",
    "args_sizes_get": "ii",
    "environ_get": "ii",
    "environ_sizes_get": "ii",
    "clock_res_get": "ii",
    "clock_time_get": "iIi",
    "fd_advise": "iIIi",
    "fd_allocate": "iII",
    "fd_close": "i",
    "fd_datasync": "i",
    "fd_fdstat_get": "ii",
    "fd_fdstat_set_flags": "ii",
    "fd_fdstat_set_rights": "iII",
    "fd_filestat_get": "ii",
    "fd_filestat_set_size": "iI",
    "fd_filestat_set_times": "iIIi",
    "fd_pread": "iiiIi",
    "fd_prestat_get": "ii",
    "fd_prestat_dir_name": "iii",
    "fd_pwrite": "iiiIi",
    "fd_read": "iiii",
    "fd_readdir": "iiiIi",
    "fd_renumber": "ii",
    "fd_seek": "iIii",
    "fd_sync": "i",
    "fd_tell": "ii",
    "fd_write": "iiii",
    "path_create_directory": "iii",
    "path_filestat_get": "iiiii",
    "path_filestat_set_times": "iiiiIIi",
    "path_link": "iiiiiii",
    "path_open": "iiiiiIIii",
    "path_readlink": "iiiiii",
    "path_remove_directory": "iii",
    "path_rename": "iiiiii",
    "path_symlink": "iiiii",
    "path_unlink_file": "iii",
    "poll_oneoff": "iiii",
    "proc_exit": "i",
    "proc_raise": "i",
    "random_get": "ii",
    "sched_yield": "",
    "sock_accept": "iii",
    "sock_recv": "iiiiii",
    "sock_send": "iiiii",
    "sock_shutdown": "ii",
}
SIGNATURES = {
    name: Signature(
        tuple("i64" if letter == "I" else "i32" for letter in shape),
        () if name == "proc_exit" else ("i32",),
    )
    for name, shape in _SHAPES.items()
}
"""Every function of preview 1 and its type."""

_TICK_NS = 1_000
"""What a host call moves the clock by: a program that waits for time to pass gets on."""
_IOVECS_MAX = 1024
_DRAW_BYTES = 1 << 16
_FIRST_FREE = 6
_READ, _WRITE = 1 << 1, 1 << 6
_POLL = 1 << 27
_RIGHTS_FILE = 0b1_1111_1111 | 0b111 << 21 | _POLL
_RIGHTS_DIRECTORY = 0b11_1111_1111 << 9 | 0b11 << 20 | 0b1111 << 23
"""As the engine's own preview 1: to look up and to change names, not to set sizes by path."""
_DIRECTORY, _REGULAR, _LINK = 3, 4, 7
_FOLLOW = 1
_CREATE, _ONLY_DIRECTORY, _EXCLUSIVE, _TRUNCATE = 1, 2, 4, 8
_APPEND, _FLAGS = 1, 0b1_1111


class Fault(Exception):
    """An address outside of the program's memory."""


class ProgramExit(Exception):
    """The run is over; the state says why."""


class WasiHost(Protocol):
    """The running program, as a host call sees it."""

    def read(self, address: int, size: int) -> bytes:
        """Return bytes of its memory.

        Raises:
            Fault: they are not all there.
        """

    def write(self, address: int, data: bytes) -> None:
        """Write to its memory.

        Raises:
            Fault: the bytes would not all fit.
        """

    def spend(self, fuel: int) -> bool:
        """Take fuel; where there is less, take what there is and return False."""

    @property
    def memory_bytes_max(self) -> int:
        """What the program's memory, and what is held for it beside, may have together."""

    def hold(self, size: int) -> bool:
        """Hold so much more for it beside its memory, or less; False where it may not have that."""


@dataclass(slots=True)
class OpenFile:
    """A descriptor: a stream (0 to 2), a file or a directory."""

    node: File | Directory | None
    stream: bytes | bytearray = b""
    """What a stream reads from or is gathered in."""
    readable: bool = False
    writable: bool = False
    flags: int = 0
    position: int = 0
    preopen: bytes | None = None
    rights: int = field(init=False)
    inherits: int = field(init=False)

    def __post_init__(self) -> None:
        access = (_READ if self.readable else 0) | (_WRITE if self.writable else 0)
        self.inherits = 0
        if self.node is None:
            self.rights = access | _POLL
        elif isinstance(self.node, Directory):
            self.rights = _RIGHTS_DIRECTORY
            self.inherits = _RIGHTS_DIRECTORY | _RIGHTS_FILE
        else:
            self.rights = _RIGHTS_FILE & ~(_READ | _WRITE) | access


def _packed(items: Sequence[str]) -> list[bytes]:
    return [item.encode() + b"\0" for item in items]


class Wasi:
    """The state of one run, with a method for each function of WASI preview 1: hence so many."""

    def __init__(
        self,
        host: WasiHost,
        *,
        args: Sequence[str] = (),
        environment: Sequence[tuple[str, str]] = (),
        stdin: bytes = b"",
        files: dict[str, bytes] | None = None,
        output_bytes: int,
        seed: bytes = b"",
        clock_ms: int,
        wall_ns: Callable[[], int] | None = None,
        tell: Callable[[int, bytes], None] | None = None,
    ) -> None:
        self._host = host
        self._args = _packed(["program", *args])
        self._environment = _packed([f"{name}={value}" for name, value in environment])
        self._output = Volume(output_bytes, "output_too_large", OUTPUT_FILES_MAX)
        """What the program gives back: both streams and all files in /out."""
        memory = "memory_exceeded: its files outside of /out count as memory"
        scratch = Volume(host.memory_bytes_max, memory, SCRATCH_FILES_MAX, host.hold)
        self._start_ns = clock_ms * 1_000_000
        self._virtual_ns = 0
        self._wall_ns = wall_ns
        self._tell = tell
        self._wall_start_ns = 0 if wall_ns is None else wall_ns()
        self._tree = FileTree(files or {}, self._output, scratch, self._start_ns)
        self._seed = seed
        self._draws = 0
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._fds: dict[int, OpenFile] = {
            0: OpenFile(None, stdin, readable=True),
            1: OpenFile(None, self.stdout, writable=True),
            2: OpenFile(None, self.stderr, writable=True),
            3: OpenFile(self._tree.inputs, preopen=b"/in"),
            4: OpenFile(self._tree.outputs, preopen=b"/out"),
            5: OpenFile(self._tree.root, preopen=b"/"),
        }
        self.exit_code: int | None = None
        self.trap: str | None = None

    def files(self) -> list[tuple[str, bytes]]:
        """Return the files that the program left in /out."""
        return self._tree.result()

    def call(self, name: str, arguments: Sequence[int]) -> int:
        """Do a host call and return its error number; 0 is success.

        Raises:
            Ended: the run is over.
        """
        self._charge(HOST_CALL_FUEL)
        self._virtual_ns += _TICK_NS
        # Wasmtime hands signed integers over; preview 1 has none but seek's offset.
        plain = [
            value % 2**32 if letter == "i" else value % 2**64
            for value, letter in zip(arguments, _SHAPES[name], strict=True)
        ]
        try:
            _CALLS[name](self, *plain)
        except Refused as refusal:
            return int(refusal.errno)
        except Fault:
            return int(Errno.FAULT)
        except QuotaExceeded as exceeded:
            self.trap = exceeded.trap
            raise ProgramExit from None
        return 0

    # What the calls share

    def _charge(self, fuel: int) -> None:
        if not self._host.spend(fuel):
            self.trap = "fuel_exhausted"
            raise ProgramExit

    @property
    def elapsed_ns(self) -> int:
        """How long the program has run by its own clock: virtual, or real where that is granted."""
        if self._wall_ns is None:
            return self._virtual_ns
        return self._virtual_ns + self._wall_ns() - self._wall_start_ns

    @property
    def _now_ns(self) -> int:
        return self._start_ns + self.elapsed_ns

    def _read(self, address: int, size: int) -> bytes:
        self._charge(size)
        return self._host.read(address, size)

    def _write(self, address: int, data: bytes) -> None:
        self._charge(len(data))
        self._host.write(address, data)

    def _pack(self, address: int, layout: str, *values: int) -> None:
        self._host.write(address, struct.pack("<" + layout, *values))

    def _open(self, fd: int) -> OpenFile:
        if fd not in self._fds:
            raise Refused(Errno.BADF)
        return self._fds[fd]

    def _file(self, fd: int) -> tuple[OpenFile, File]:
        handle = self._open(fd)
        if handle.node is None:
            raise Refused(Errno.SPIPE)
        if isinstance(handle.node, Directory):
            raise Refused(Errno.ISDIR)
        return handle, handle.node

    def _directory(self, fd: int) -> Directory:
        node = self._open(fd).node
        if not isinstance(node, Directory):
            raise Refused(Errno.NOTDIR)
        return node

    def _iovecs(self, address: int, count: int) -> list[tuple[int, int]]:
        if count > _IOVECS_MAX:
            raise Refused(Errno.INVAL)
        raw = self._read(address, count * 8)
        return [pair for pair in struct.iter_unpack("<II", raw) if pair[1]]

    def _buffers(self, address: int, count: int, volume: Volume) -> list[tuple[int, int]]:
        """Return a list of buffers that are to be written where they count in that volume."""
        iovecs = self._iovecs(address, count)
        # Checked before anything is copied: buffers may overlap and name a byte often.
        size = sum(size for _, size in iovecs)
        self._charge(size)
        if size > volume.most:
            raise QuotaExceeded(volume.trap)
        return iovecs

    def _scatter(self, address: int, count: int, data: memoryview) -> int:
        """Fill a list of buffers and return how many bytes went in."""
        done = 0
        for start, size in self._iovecs(address, count):
            piece = data[done : done + size]
            if not piece:
                break
            self._write(start, bytes(piece))
            done += len(piece)
        return done

    def _strings(self, items: list[bytes], pointers: int, buffer: int) -> None:
        self._charge(sum(map(len, items)) + 4 * len(items))
        for item in items:
            self._pack(pointers, "I", buffer)
            self._host.write(buffer, item)
            pointers += 4
            buffer += len(item)

    def _sizes(self, items: list[bytes], count: int, size: int) -> None:
        self._pack(count, "I", len(items))
        self._pack(size, "I", sum(map(len, items)))

    # Arguments, environment, time and chance

    def _args_get(self, pointers: int, buffer: int) -> None:
        self._strings(self._args, pointers, buffer)

    def _args_sizes_get(self, count: int, size: int) -> None:
        self._sizes(self._args, count, size)

    def _environ_get(self, pointers: int, buffer: int) -> None:
        self._strings(self._environment, pointers, buffer)

    def _environ_sizes_get(self, count: int, size: int) -> None:
        self._sizes(self._environment, count, size)

    def _clock_res_get(self, clock: int, out: int) -> None:
        if clock > 3:
            raise Refused(Errno.INVAL)
        self._pack(out, "Q", _TICK_NS)

    def _clock(self, clock: int) -> int:
        if clock > 3:
            raise Refused(Errno.INVAL)
        return self._now_ns if clock == 0 else self.elapsed_ns

    def _clock_time_get(self, clock: int, _precision: int, out: int) -> None:
        self._pack(out, "Q", self._clock(clock) % 2**64)

    def _random_get(self, buffer: int, size: int) -> None:
        self._charge(size)
        for start in range(0, size, _DRAW_BYTES):
            self._draws += 1
            stream = hashlib.shake_256(self._seed + self._draws.to_bytes(8, "big"))
            self._host.write(buffer + start, stream.digest(min(_DRAW_BYTES, size - start)))

    def _sched_yield(self) -> None:
        pass

    def _proc_exit(self, code: int) -> None:
        self.exit_code = code
        raise ProgramExit

    def _poll_oneoff(self, subscriptions: int, events: int, count: int, out: int) -> None:
        if not 0 < count <= _IOVECS_MAX:
            raise Refused(Errno.INVAL)
        raw = self._read(subscriptions, count * 48)
        ready: list[bytes] = []
        alarms: list[tuple[int, bytes]] = []
        for start in range(0, len(raw), 48):
            userdata, tag = struct.unpack_from("<QB", raw, start)
            if tag == 0:
                clock, timeout, _, flags = struct.unpack_from("<IxxxxQQH", raw, start + 16)
                wait = timeout - self._clock(clock) if flags & 1 else timeout
                alarms.append((max(0, wait), struct.pack("<QHB21x", userdata, 0, 0)))
                continue
            (fd,) = struct.unpack_from("<I", raw, start + 16)
            errno = 0 if fd in self._fds else int(Errno.BADF)
            ready.append(struct.pack("<QHB5xQ8x", userdata, errno, tag, 0 if errno else 1))
        wait = 0 if ready else min(after for after, _ in alarms)
        self._charge(wait // 1_000_000)
        self._virtual_ns += wait
        ready += [event for after, event in alarms if after <= wait]
        self._write(events, b"".join(ready))
        self._pack(out, "I", len(ready))

    # Descriptors

    def _fd_close(self, fd: int) -> None:
        handle = self._open(fd)
        del self._fds[fd]
        self._closed(handle)

    def _closed(self, handle: OpenFile) -> None:
        if isinstance(handle.node, File):
            handle.node.opens -= 1
            self._tree.release(handle.node)

    def _fd_renumber(self, fd: int, to: int) -> None:
        handle = self._open(fd)
        over = self._open(to)
        if fd != to:
            self._fds[to] = handle
            del self._fds[fd]
            self._closed(over)

    def _fd_fdstat_get(self, fd: int, out: int) -> None:
        handle = self._open(fd)
        kind = _filetype(handle.node)
        self._pack(out, "BxHxxxxQQ", kind, handle.flags, handle.rights, handle.inherits)

    def _fd_fdstat_set_flags(self, fd: int, flags: int) -> None:
        if flags & ~_FLAGS:
            raise Refused(Errno.INVAL)
        self._open(fd).flags = flags

    def _fd_fdstat_set_rights(self, fd: int, base: int, inheriting: int) -> None:
        handle = self._open(fd)
        if base & ~handle.rights or inheriting & ~handle.inherits:
            raise Refused(Errno.NOTCAPABLE)
        handle.rights, handle.inherits = base, inheriting
        handle.readable = handle.readable and bool(base & _READ)
        handle.writable = handle.writable and bool(base & _WRITE)

    def _filestat(self, node: Node | None, out: int) -> None:
        inode = node.inode if node else 0
        size = len(node.data) if isinstance(node, File) else 0
        if isinstance(node, Link):
            size = len(node.target)
        accessed = node.accessed_ns if node else self._start_ns
        modified = node.modified_ns if node else self._start_ns
        kind = _filetype(node)
        names = node.names if isinstance(node, File) else 1
        times = [at % 2**64 for at in (accessed, modified, modified)]  # a sleep may pass its end
        self._pack(out, "QQB7xQQQQQ", 0, inode, kind, names, size, *times)

    def _fd_filestat_get(self, fd: int, out: int) -> None:
        self._filestat(self._open(fd).node, out)

    def _fd_filestat_set_size(self, fd: int, size: int) -> None:
        handle, file = self._file(fd)
        if not handle.writable:
            raise Refused(Errno.INVAL)
        self._charge(max(0, size - len(file.data)))
        self._tree.resize(file, size)

    def _set_times(self, node: Node | None, accessed: int, modified: int, flags: int) -> None:
        if node is None or flags & 3 == 3 or flags & 12 == 12:
            raise Refused(Errno.INVAL)
        if not node.volume.writable:
            raise Refused(Errno.ROFS)
        if flags & 3:
            node.accessed_ns = self._now_ns if flags & 2 else accessed
        if flags & 12:
            node.modified_ns = self._now_ns if flags & 8 else modified

    def _fd_filestat_set_times(self, fd: int, accessed: int, modified: int, flags: int) -> None:
        self._set_times(self._open(fd).node, accessed, modified, flags)

    def _fd_advise(self, fd: int, _offset: int, _size: int, _advice: int) -> None:
        self._file(fd)

    def _fd_allocate(self, fd: int, offset: int, size: int) -> None:
        _, file = self._file(fd)
        if offset + size > len(file.data):
            self._fd_filestat_set_size(fd, offset + size)

    def _fd_sync(self, fd: int) -> None:
        self._open(fd)

    _fd_datasync = _fd_sync

    def _read_from(self, fd: int) -> tuple[OpenFile, bytes | bytearray]:
        handle = self._open(fd)
        if isinstance(handle.node, Directory):
            raise Refused(Errno.ISDIR)
        if not handle.readable:
            raise Refused(Errno.BADF)
        return handle, handle.stream if handle.node is None else handle.node.data

    def _fd_read(self, fd: int, iovecs: int, count: int, out: int) -> None:
        handle, data = self._read_from(fd)
        with memoryview(data)[handle.position :] as rest:
            size = self._scatter(iovecs, count, rest)
        handle.position += size
        self._pack(out, "I", size)

    def _fd_pread(self, fd: int, iovecs: int, count: int, offset: int, out: int) -> None:
        handle, data = self._read_from(fd)
        if handle.node is None:
            raise Refused(Errno.SPIPE)
        with memoryview(data)[min(offset, len(data)) :] as rest:
            size = self._scatter(iovecs, count, rest)
        self._pack(out, "I", size)

    def _fd_write(self, fd: int, iovecs: int, count: int, out: int) -> None:
        handle = self._open(fd)
        if isinstance(handle.node, Directory):
            raise Refused(Errno.ISDIR)
        if not handle.writable:
            raise Refused(Errno.BADF)
        if handle.node is None:
            buffers = self._buffers(iovecs, count, self._output)
            data = b"".join(self._host.read(start, size) for start, size in buffers)
            assert isinstance(handle.stream, bytearray)
            self._output.take(len(data))
            handle.stream += data
            if self._tell is not None:
                self._tell(1 if handle.stream is self.stdout else 2, data)
            written = len(data)
        else:
            if handle.flags & _APPEND:
                handle.position = len(handle.node.data)
            written = self._store(handle.node, handle.position, iovecs, count)
            handle.position += written
        self._pack(out, "I", written)

    def _store(self, file: File, position: int, iovecs: int, count: int) -> int:
        """Write buffers over a file and return how many bytes they were.

        One after the other: together they may be many times the memory.
        """
        buffers = self._buffers(iovecs, count, file.volume)
        self._charge(max(0, position - len(file.data)))
        stop = position
        for start, size in buffers:
            self._tree.write(file, stop, self._host.read(start, size), self._now_ns)
            stop += size
        return stop - position

    def _fd_pwrite(self, fd: int, iovecs: int, count: int, offset: int, out: int) -> None:
        handle, file = self._file(fd)
        if not handle.writable:
            raise Refused(Errno.BADF)
        self._pack(out, "I", self._store(file, offset, iovecs, count))

    def _fd_seek(self, fd: int, offset: int, whence: int, out: int) -> None:
        handle, file = self._file(fd)
        if whence > 2:
            raise Refused(Errno.INVAL)
        signed = offset - 2**64 if offset >= 2**63 else offset
        position = (0, handle.position, len(file.data))[whence] + signed
        if not 0 <= position < 2**63:
            raise Refused(Errno.INVAL)
        handle.position = position
        self._pack(out, "Q", position)

    def _fd_tell(self, fd: int, out: int) -> None:
        handle, _ = self._file(fd)
        self._pack(out, "Q", handle.position)

    def _fd_prestat_get(self, fd: int, out: int) -> None:
        name = self._open(fd).preopen
        if name is None:
            raise Refused(Errno.BADF)
        self._pack(out, "II", 0, len(name))

    def _fd_prestat_dir_name(self, fd: int, buffer: int, size: int) -> None:
        name = self._open(fd).preopen
        if name is None:
            raise Refused(Errno.BADF)
        if size < len(name):
            raise Refused(Errno.NAMETOOLONG)
        self._host.write(buffer, name)

    def _fd_readdir(self, fd: int, buffer: int, size: int, cookie: int, out: int) -> None:
        directory = self._directory(fd)
        self._charge(len(directory.entries) * LISTED_ENTRY_FUEL)
        listed: list[tuple[str, Node]] = [(".", directory), ("..", directory)]
        listed += sorted(directory.entries.items())
        raw = bytearray()
        for index, (name, node) in enumerate(listed[min(cookie, len(listed)) :], cookie + 1):
            text = name.encode()
            raw += struct.pack("<QQIBxxx", index, node.inode, len(text), _filetype(node)) + text
            if len(raw) >= size:
                break
        self._write(buffer, bytes(raw[:size]))
        self._pack(out, "I", min(size, len(raw)))

    # Paths

    def _path_open(  # noqa: PLR0917 - the shape of the WASI call
        self,
        fd: int,
        lookup: int,
        path: int,
        size: int,
        how: int,
        rights: int,
        _inheriting: int,
        flags: int,
        out: int,
    ) -> None:
        base, name = self._directory(fd), self._read(path, size)
        if len(self._fds) >= OPEN_FILES_MAX:
            raise Refused(Errno.MFILE)
        writes = bool(rights & _WRITE)
        follow = bool(lookup & _FOLLOW) and not (how & _CREATE and how & _EXCLUSIVE)
        try:
            node = self._tree.find(base, name, follow=follow)
        except Refused as refusal:
            if refusal.errno is not Errno.NOENT or not how & _CREATE or how & _ONLY_DIRECTORY:
                raise
            node = self._tree.create(base, name, self._now_ns, follow=follow)
        else:
            if how & _CREATE and how & _EXCLUSIVE:
                raise Refused(Errno.EXIST)
        if isinstance(node, Link):
            raise Refused(Errno.NOTDIR if how & _ONLY_DIRECTORY else Errno.LOOP)
        if isinstance(node, Directory):
            if how & _TRUNCATE or writes:
                raise Refused(Errno.ISDIR)
            handle = OpenFile(node)
        else:
            if how & _ONLY_DIRECTORY:
                raise Refused(Errno.NOTDIR)
            if (writes or how & _TRUNCATE) and not node.volume.writable:
                raise Refused(Errno.ROFS)
            if how & _TRUNCATE:
                self._tree.resize(node, 0)
            handle = OpenFile(node, readable=bool(rights & _READ), writable=writes, flags=flags)
            node.opens += 1
        number = next(i for i in range(_FIRST_FREE, OPEN_FILES_MAX * 2) if i not in self._fds)
        self._fds[number] = handle
        self._pack(out, "I", number)

    def _path_create_directory(self, fd: int, path: int, size: int) -> None:
        base = self._directory(fd)
        self._tree.make_directory(base, self._read(path, size), self._now_ns)

    def _path_filestat_get(self, fd: int, lookup: int, path: int, size: int, out: int) -> None:
        base, name = self._directory(fd), self._read(path, size)
        self._filestat(self._tree.find(base, name, follow=bool(lookup & _FOLLOW)), out)

    def _path_filestat_set_times(  # noqa: PLR0917 - the shape of the WASI call
        self, fd: int, lookup: int, path: int, size: int, accessed: int, modified: int, flags: int
    ) -> None:
        base, name = self._directory(fd), self._read(path, size)
        node = self._tree.find(base, name, follow=bool(lookup & _FOLLOW))
        self._set_times(node, accessed, modified, flags)

    def _path_link(  # noqa: PLR0917 - the shape of the WASI call
        self, fd: int, lookup: int, path: int, size: int, to_fd: int, to_path: int, to_size: int
    ) -> None:
        if lookup & _FOLLOW:
            raise Refused(Errno.INVAL)
        base, to_base = self._directory(fd), self._directory(to_fd)
        self._tree.link(base, self._read(path, size), to_base, self._read(to_path, to_size))

    def _path_symlink(self, target: int, length: int, fd: int, path: int, size: int) -> None:
        base = self._directory(fd)
        self._tree.make_link(self._read(target, length), base, self._read(path, size), self._now_ns)

    def _path_readlink(  # noqa: PLR0917 - the shape of the WASI call
        self, fd: int, path: int, size: int, buffer: int, length: int, out: int
    ) -> None:
        node = self._tree.find(self._directory(fd), self._read(path, size), follow=False)
        if not isinstance(node, Link):
            raise Refused(Errno.INVAL)
        self._write(buffer, node.target[:length])
        self._pack(out, "I", min(length, len(node.target)))

    def _path_remove_directory(self, fd: int, path: int, size: int) -> None:
        self._tree.remove_directory(self._directory(fd), self._read(path, size))

    def _path_rename(  # noqa: PLR0917 - the shape of the WASI call
        self, fd: int, path: int, size: int, to_fd: int, to_path: int, to_size: int
    ) -> None:
        base, to_base = self._directory(fd), self._directory(to_fd)
        old, new = self._read(path, size), self._read(to_path, to_size)
        self._tree.rename(
            base, old, to_base, new, lambda entries: self._charge(entries * MOVED_ENTRY_FUEL)
        )

    def _path_unlink_file(self, fd: int, path: int, size: int) -> None:
        self._tree.remove_file(self._directory(fd), self._read(path, size))

    def _no_socket(self, fd: int, *_arguments: int) -> None:
        self._open(fd)
        raise Refused(Errno.NOTSOCK)

    _sock_accept = _sock_recv = _sock_send = _sock_shutdown = _no_socket

    def _unsupported(self, *_arguments: int) -> None:
        raise Refused(Errno.NOTSUP)


def _filetype(node: Node | None) -> int:
    if node is None:
        return 0
    if isinstance(node, Link):
        return _LINK
    return _DIRECTORY if isinstance(node, Directory) else _REGULAR


_Call: TypeAlias = Callable[..., None]
_CALLS: dict[str, _Call] = {
    name: getattr(Wasi, f"_{name}", Wasi._unsupported)  # noqa: SLF001 - its own table
    for name in _SHAPES
}
