"""WASI as plain state: the host calls, with a memory and a meter of a few lines."""

from __future__ import annotations

import struct
import tracemalloc

import pytest

from xsc.base.limits import (
    FILE_NAME_BYTES_MAX,
    HOST_CALL_FUEL,
    LISTED_ENTRY_FUEL,
    MIB,
    MOVED_ENTRY_FUEL,
    OUTPUT_FILES_MAX,
    OUTPUT_PATH_BYTES_MAX,
)
from xsc.compute.wasm.files import SCRATCH_FILES_MAX, Errno
from xsc.compute.wasm.inputs import is_output_path
from xsc.compute.wasm.wasi import OPEN_FILES_MAX, SIGNATURES, Fault, ProgramExit, Wasi

READ, WRITE = 1 << 1, 1 << 6
CREATE, DIRECTORY, EXCLUSIVE, TRUNCATE = 1, 2, 4, 8
IN, OUT, ROOT = 3, 4, 5
OUTPUT_BYTES = 1000
SCRATCH_BYTES = 2000
START_NS = 5_000_000


class Machine:
    """A memory of 64 KiB and a meter."""

    def __init__(self, fuel=10**9):
        self.memory = bytearray(65536)
        self.fuel = fuel

    def read(self, address, size):
        if address + size > len(self.memory):
            raise Fault
        return bytes(self.memory[address : address + size])

    def write(self, address, data):
        if address + len(data) > len(self.memory):
            raise Fault
        self.memory[address : address + len(data)] = data

    memory_bytes_max = 65536 + SCRATCH_BYTES
    held = 0

    def hold(self, size):
        fits = len(self.memory) + self.held + size <= self.memory_bytes_max
        self.held += size if fits else 0
        return fits

    def spend(self, fuel):
        enough = fuel <= self.fuel
        self.fuel -= min(fuel, self.fuel)
        return enough

    def number(self, address, layout="<I"):
        return struct.unpack_from(layout, self.memory, address)[0]


class Program:
    """Calls as a program would."""

    def __init__(self, machine=None, **given):
        self.machine = machine or Machine()
        self.state = Wasi(self.machine, output_bytes=OUTPUT_BYTES, clock_ms=5, **given)

    def __getattr__(self, name):
        return lambda *arguments: self.state.call(name, arguments)

    def text(self, data, at=1024):
        self.machine.write(at, data)
        return at, len(data)

    def open(self, path, base=OUT, how=0, rights=READ, flags=0, *, follow=False):
        errno = self.path_open(base, int(follow), *self.text(path), how, rights, 0, flags, 0)
        return -errno if errno else self.machine.number(0)

    def create(self, path, data=b""):
        fd = self.open(path, how=CREATE, rights=READ | WRITE)
        assert fd > ROOT, fd
        assert self.write(fd, data) == 0
        return fd

    def _vector(self, size, at):
        self.machine.write(512, struct.pack("<II", at, size))
        return 512, 1

    def write(self, fd, data):
        at, size = self.text(data, 8192)
        return self.fd_write(fd, *self._vector(size, at), 0)

    def read(self, fd, size=4096):
        errno = self.fd_read(fd, *self._vector(size, 8192), 0)
        assert errno == 0, errno
        return self.machine.read(8192, self.machine.number(0))

    def list(self, fd):
        assert self.fd_readdir(fd, 8192, 32768, 0, 0) == 0
        raw = self.machine.read(8192, self.machine.number(0))
        names = []
        while raw:
            size = struct.unpack_from("<I", raw, 16)[0]
            names.append(raw[24 : 24 + size].decode())
            raw = raw[24 + size :]
        return names


@pytest.fixture
def program():
    return Program(
        args=["-n", "zwei"],
        environment=[("A", "1"), ("B", "")],
        stdin=b"given\n",
        files={"b": b"second", "a": b"first"},
        seed=b"seed",
    )


def strings(program, sizes, get):
    assert sizes(0, 4) == 0
    count, size = program.machine.number(0), program.machine.number(4)
    assert get(64, 1024) == 0
    pointers = [program.machine.number(64 + 4 * index) for index in range(count)]
    raw = program.machine.read(1024, size)
    found = [raw[pointer - 1024 :].split(b"\0")[0] for pointer in pointers]
    assert sum(len(text) + 1 for text in found) == size
    return found


def test_arguments_and_environment_are_given(program):
    assert strings(program, program.args_sizes_get, program.args_get) == [
        b"program",
        b"-n",
        b"zwei",
    ]
    assert strings(program, program.environ_sizes_get, program.environ_get) == [b"A=1", b"B="]


def test_stdin_is_read_to_its_end(program):
    assert program.read(0, 3) == b"giv"
    assert program.read(0) == b"en\n"
    assert program.read(0) == b""


def test_streams_are_gathered_apart(program):
    assert program.write(1, b"out") == program.write(2, b"err") == program.write(1, b"put") == 0
    assert bytes(program.state.stdout) == b"output"
    assert bytes(program.state.stderr) == b"err"
    assert program.write(0, b"x") == Errno.BADF
    assert program.fd_read(1, 0, 0, 0) == Errno.BADF


def test_streams_are_no_terminals_and_cannot_be_sought(program):
    for fd in range(3):
        assert program.fd_fdstat_get(fd, 0) == 0
        assert program.machine.memory[0] == 0
        assert program.fd_seek(fd, 0, 0, 0) == Errno.SPIPE
        assert program.fd_tell(fd, 0) == Errno.SPIPE


def test_all_that_is_given_back_has_one_bound(program):
    program.create(b"file", b"x" * 600)
    assert program.write(1, b"y" * 400) == 0
    with pytest.raises(ProgramExit):
        program.write(2, b"z")
    assert program.state.trap == "output_too_large"
    assert len(program.state.stdout) == 400


def test_a_list_of_buffers_that_names_a_byte_often_is_not_copied(program):
    program.machine.write(1024, struct.pack("<II", 0, 65536) * 1000)
    with pytest.raises(ProgramExit):
        program.fd_write(1, 1024, 1000, 0)
    assert program.state.trap == "output_too_large"
    assert program.fd_write(1, 0, 1025, 0) == Errno.INVAL


def test_buffers_of_a_file_are_written_one_after_the_other():
    """Else a program's files would take three times the memory that it may have, for a moment."""
    machine = Machine()
    machine.memory_bytes_max = 64 * MIB
    program = Program(machine)
    fd = program.open(b"f", ROOT, how=CREATE, rights=WRITE)
    machine.write(1024, struct.pack("<II", 0, 65536) * 512)
    tracemalloc.start()
    try:
        assert program.fd_write(fd, 1024, 512, 0) == 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert machine.number(0) == machine.held == 32 * MIB
    assert peak < 48 * MIB


def test_time_is_virtual(program):
    assert program.clock_time_get(0, 0, 0) == 0
    first = program.machine.number(0, "<Q")
    assert program.clock_time_get(0, 0, 0) == 0
    assert START_NS < first < program.machine.number(0, "<Q")
    assert program.clock_time_get(1, 0, 0) == 0
    assert program.machine.number(0, "<Q") < START_NS
    assert program.clock_res_get(0, 0) == 0
    assert program.clock_time_get(4, 0, 0) == program.clock_res_get(4, 0) == Errno.INVAL


def subscription(userdata, tag, *, clock=1, timeout_ns=0, absolute=0, fd=0):
    head = struct.pack("<QB7x", userdata, tag)
    if tag:
        return head + struct.pack("<I28x", fd)
    return head + struct.pack("<IxxxxQQH6x", clock, timeout_ns, 0, absolute)


def polled(program, *subscriptions):
    program.text(b"".join(subscriptions))
    errno = program.poll_oneoff(1024, 4096, len(subscriptions), 0)
    assert errno == 0
    raw = program.machine.read(4096, 32 * program.machine.number(0))
    return [struct.unpack_from("<QHB", raw, start) for start in range(0, len(raw), 32)]


def test_a_sleep_moves_the_clock_and_costs_a_unit_a_millisecond(program):
    before, fuel = program.state.elapsed_ns, program.machine.fuel
    assert polled(program, subscription(7, 0, timeout_ns=3_600 * 10**9)) == [(7, 0, 0)]
    assert program.state.elapsed_ns - before == 3_600 * 10**9 + 1_000
    assert fuel - program.machine.fuel == 3_600_000 + HOST_CALL_FUEL + 48 + 32


def test_the_earliest_alarm_wakes_alone(program):
    alarms = [subscription(n, 0, timeout_ns=n * 10**6) for n in (3, 1, 2)]
    assert polled(program, *alarms) == [(1, 0, 0)]
    elapsed = program.state.elapsed_ns
    late = subscription(4, 0, timeout_ns=5, absolute=1)
    assert polled(program, late) == [(4, 0, 0)]
    assert program.state.elapsed_ns == elapsed + 1_000


def test_descriptors_are_always_ready(program):
    found = polled(
        program,
        subscription(1, 1, fd=0),
        subscription(2, 2, fd=99),
        subscription(3, 0, timeout_ns=10**18),
    )
    assert found == [(1, 0, 1), (2, Errno.BADF, 2)]
    assert program.poll_oneoff(0, 0, 0, 0) == Errno.INVAL


def test_chance_follows_from_the_seed():
    def draw(seed, sizes):
        program = Program(seed=seed)
        for size in sizes:
            assert program.random_get(1024, size) == 0
        return program.machine.read(1024, 32)

    assert draw(b"a", [32]) == draw(b"a", [32])
    assert draw(b"a", [32]) != draw(b"b", [32])
    assert draw(b"a", [32]) != draw(b"a", [8, 32])
    assert Program().random_get(65530, 7) == Errno.FAULT


def test_exit_ends_the_run_with_its_code(program):
    with pytest.raises(ProgramExit):
        program.proc_exit(-1)
    assert (program.state.exit_code, program.state.trap) == (2**32 - 1, None)


def test_every_call_costs_fuel_and_the_last_drop_ends_the_run():
    program = Program(Machine(fuel=HOST_CALL_FUEL + 9))
    with pytest.raises(ProgramExit):
        program.random_get(0, 10)
    assert (program.state.trap, program.machine.fuel) == ("fuel_exhausted", 0)


@pytest.mark.parametrize("entries", [0, 1, 100])
def test_each_entry_that_is_listed_or_moved_costs_fuel(entries):
    program = Program()

    def cost(call):
        before = program.machine.fuel
        assert call() == 0
        return before - program.machine.fuel

    assert program.path_create_directory(OUT, *program.text(b"d")) == 0
    assert program.path_create_directory(OUT, *program.text(b"d/e")) == 0
    for index in range(entries):
        assert program.path_create_directory(OUT, *program.text(b"d/e/%d" % index)) == 0
    fd = program.open(b"d/e", how=DIRECTORY)
    # How little is returned does not matter: all of them are sorted.
    listed = HOST_CALL_FUEL + 1 + entries * LISTED_ENTRY_FUEL
    assert cost(lambda: program.fd_readdir(fd, 8192, 1, 0, 0)) == listed
    old, new = program.text(b"d"), program.text(b"n", 2048)
    moved = HOST_CALL_FUEL + 2 + (1 + entries) * MOVED_ENTRY_FUEL
    assert cost(lambda: program.path_rename(OUT, *old, OUT, *new)) == moved
    assert program.open(b"n/e", how=DIRECTORY) > ROOT


@pytest.mark.parametrize("call", ["list", "rename"])
def test_entries_are_paid_for_before_they_are_gone_through(call):
    program = Program()
    assert program.path_create_directory(OUT, *program.text(b"d")) == 0
    program.create(b"d/f")
    fd = program.open(b"d", how=DIRECTORY)
    old, new = program.text(b"d"), program.text(b"e", 2048)
    cost, do = {
        "list": (LISTED_ENTRY_FUEL, lambda: program.fd_readdir(fd, 8192, 0, 0, 0)),
        "rename": (MOVED_ENTRY_FUEL + 2, lambda: program.path_rename(OUT, *old, OUT, *new)),
    }[call]
    program.machine.fuel = HOST_CALL_FUEL + cost - 1
    with pytest.raises(ProgramExit):
        do()
    assert program.state.trap == "fuel_exhausted"
    assert program.state.files() == [("d/f", b"")]


def test_addresses_outside_of_the_memory_are_a_fault(program):
    assert program.clock_time_get(0, 0, 65_530) == Errno.FAULT
    assert program.fd_write(1, 65_530, 1, 0) == Errno.FAULT
    assert program.path_open(OUT, 0, 65_000, 4_000, CREATE, 0, 0, 0, 0) == Errno.FAULT
    assert program.args_get(65_535, 0) == Errno.FAULT


# Files


def test_inputs_are_there_and_cannot_be_changed(program):
    assert program.list(IN) == [".", "..", "a", "b"]
    fd = program.open(b"a", IN)
    assert program.read(fd) == b"first"
    assert program.write(fd, b"x") == Errno.BADF
    assert program.fd_filestat_set_size(fd, 0) == Errno.INVAL
    assert program.open(b"a", IN, rights=READ | WRITE) == -Errno.ROFS
    assert program.open(b"a", IN, how=TRUNCATE) == -Errno.ROFS
    assert program.open(b"c", IN, how=CREATE, rights=WRITE) == -Errno.ROFS
    assert program.path_unlink_file(IN, *program.text(b"a")) == Errno.ROFS
    assert program.path_create_directory(IN, *program.text(b"d")) == Errno.ROFS
    assert program.path_rename(IN, *program.text(b"a"), OUT, *program.text(b"a")) == Errno.ROFS
    assert program.fd_filestat_set_times(fd, 0, 0, 8) == Errno.ROFS


def test_what_is_written_to_out_is_given_back(program):
    program.create(b"z", b"last")
    assert program.path_create_directory(OUT, *program.text(b"d")) == 0
    assert program.open(b"d/./x/../y", how=CREATE, rights=WRITE) == -Errno.NOENT
    program.create(b"d/./../d/y", b"deep")
    assert program.state.files() == [("d/y", b"deep"), ("z", b"last")]


def test_reading_writing_and_seeking(program):
    fd = program.create(b"f", b"hello")
    assert program.fd_seek(fd, -4, 1, 0) == 0
    assert program.machine.number(0, "<Q") == 1
    assert program.read(fd) == b"ello"
    assert program.fd_seek(fd, 3, 2, 0) == 0
    assert program.write(fd, b"!") == 0
    assert program.fd_tell(fd, 0) == 0
    assert program.machine.number(0, "<Q") == 9
    assert program.state.files() == [("f", b"hello\0\0\0!")]
    assert program.fd_seek(fd, -10, 2, 0) == program.fd_seek(fd, 0, 3, 0) == Errno.INVAL
    at = program._vector(2, 8192)
    assert program.fd_pread(fd, *at, 1, 0) == 0
    assert program.machine.read(8192, 2) == b"el"
    program.machine.write(8192, b"EL")
    assert program.fd_pwrite(fd, *at, 1, 0) == 0
    assert program.fd_pread(fd, *at, 2**64 - 1, 0) == 0
    assert program.machine.number(0) == 0
    assert program.state.files() == [("f", b"hELlo\0\0\0!")]


def test_append_goes_to_the_end(program):
    program.create(b"f", b"one")
    fd = program.open(b"f", rights=WRITE, flags=1)
    assert program.write(fd, b"two") == 0
    assert program.fd_fdstat_set_flags(fd, 0) == 0
    assert program.fd_seek(fd, 0, 0, 0) == 0
    assert program.write(fd, b"T") == 0
    assert program.state.files() == [("f", b"Tnetwo")]


def test_open_keeps_its_flags(program):
    program.create(b"f", b"old")
    assert program.open(b"f", how=CREATE | EXCLUSIVE, rights=WRITE) == -Errno.EXIST
    assert program.open(b"f", how=DIRECTORY) == -Errno.NOTDIR
    assert program.open(b"g") == -Errno.NOENT
    assert program.open(b"f/g") == -Errno.NOTDIR
    assert program.open(b"f/") == -Errno.NOTDIR
    assert program.open(b"g/", how=CREATE, rights=WRITE) == -Errno.ISDIR
    assert program.open(b".", rights=WRITE) == -Errno.ISDIR
    assert program.open(b"f", how=TRUNCATE, rights=WRITE) > 0
    assert program.state.files() == [("f", b"")]


@pytest.mark.parametrize("path", [b"/etc/passwd", b"..", b"../in/a", b"d/../../x", b"d/up/x"])
def test_no_path_leads_out(program, path):
    program.path_create_directory(OUT, *program.text(b"d"))
    symlink(program, b"../..", b"d/up")
    assert program.open(path, how=CREATE, rights=WRITE) == -Errno.NOTCAPABLE


def test_odd_paths_are_refused(program):
    assert program.open(b"") == -Errno.NOENT
    assert program.open(b"\xff") == -Errno.ILSEQ
    assert program.open(b"a\0b", how=CREATE) == -Errno.INVAL
    assert program.open(b"x" * (FILE_NAME_BYTES_MAX + 1)) == -Errno.NAMETOOLONG
    assert program.open(b"x/" * 2100) == -Errno.NAMETOOLONG


def test_directories_are_made_listed_moved_and_removed(program):
    text = program.text
    assert program.path_create_directory(OUT, *text(b"d")) == 0
    assert program.path_create_directory(OUT, *text(b"d")) == Errno.EXIST
    assert program.path_create_directory(OUT, *text(b".")) == Errno.INVAL
    program.create(b"d/f", b"x")
    assert program.path_remove_directory(OUT, *text(b"d")) == Errno.NOTEMPTY
    assert program.path_unlink_file(OUT, *text(b"d")) == Errno.ISDIR
    assert program.path_remove_directory(OUT, *text(b"d/f")) == Errno.NOTDIR
    assert program.path_rename(OUT, *text(b"d"), OUT, *text(b"d/e", 2048)) == Errno.INVAL
    assert program.path_rename(OUT, *text(b"d"), OUT, *text(b"e", 2048)) == 0
    assert program.list(OUT) == [".", "..", "e"]
    assert program.path_unlink_file(OUT, *text(b"e/f")) == 0
    assert program.path_remove_directory(OUT, *text(b"e")) == 0
    assert program.list(OUT) == [".", ".."]


def test_a_rename_goes_over_what_it_may(program):
    text = program.text
    program.create(b"a", b"new")
    program.create(b"b", b"old")
    assert program.path_create_directory(OUT, *text(b"d")) == 0
    assert program.path_rename(OUT, *text(b"a"), OUT, *text(b"d", 2048)) == Errno.ISDIR
    assert program.path_rename(OUT, *text(b"d"), OUT, *text(b"a", 2048)) == Errno.NOTDIR
    assert program.path_rename(OUT, *text(b"a"), OUT, *text(b"a", 2048)) == 0
    assert program.path_rename(OUT, *text(b"a"), OUT, *text(b"b", 2048)) == 0
    assert program.state.files() == [("b", b"new")]


def test_a_directory_is_listed_in_pieces(program):
    for name in b"pqr":
        program.create(bytes([name]))
    names, cookie = [], 0
    while True:
        assert program.fd_readdir(OUT, 8192, 30, cookie, 0) == 0
        used = program.machine.number(0)
        if used < 25:
            break
        cookie, _, size = struct.unpack_from("<QQI", program.machine.memory, 8192)
        names.append(program.machine.read(8192 + 24, size))
    assert names == [b".", b"..", b"p", b"q", b"r"]
    assert program.fd_readdir(OUT, 8192, 30, 2**64 - 1, 0) == 0
    assert program.machine.number(0) == 0


def test_room_is_given_back_once_nothing_leads_to_a_file(program):
    fd = program.create(b"f", b"x" * 900)
    assert program.path_unlink_file(OUT, *program.text(b"f")) == 0
    assert program.read(fd) == b""
    with pytest.raises(ProgramExit):
        program.write(1, b"y" * 101)
    assert program.fd_close(fd) == 0
    program.state.trap = None
    assert program.write(1, b"y" * 1000) == 0
    assert program.state.files() == []


def test_a_gap_is_charged_and_bounded(program):
    fd = program.create(b"f")
    assert program.fd_seek(fd, 2**62, 0, 0) == 0
    with pytest.raises(ProgramExit):
        program.write(fd, b"x")
    assert program.state.trap == "fuel_exhausted"
    rich = Program(Machine(fuel=2**63))
    fd = rich.create(b"f")
    with pytest.raises(ProgramExit):
        rich.fd_allocate(fd, 2**40, 2**40)
    assert rich.state.trap == "output_too_large"


def test_sizes_and_times_are_told_and_set(program):
    fd = program.create(b"f", b"12345")
    assert program.fd_filestat_set_size(fd, 3) == 0
    assert program.fd_allocate(fd, 0, 2) == program.fd_advise(fd, 0, 0, 0) == 0
    assert program.path_filestat_set_times(OUT, 0, *program.text(b"f"), 11, 22, 1 | 4) == 0
    assert program.path_filestat_get(OUT, 0, *program.text(b"f"), 256) == 0
    _, inode, kind, links, size, accessed, modified, _ = struct.unpack_from(
        "<QQB7xQQQQQ", program.machine.memory, 256
    )
    assert (kind, links, size, accessed, modified) == (4, 1, 3, 11, 22)
    assert program.fd_filestat_get(OUT, 256) == 0
    assert program.machine.number(256 + 16, "<B") == 3
    assert program.machine.number(256 + 8, "<Q") != inode
    assert program.fd_filestat_set_times(fd, 0, 0, 2 | 8) == 0
    assert program.fd_filestat_get(1, 256) == 0
    assert program.fd_filestat_set_times(1, 0, 0, 8) == Errno.INVAL


def test_descriptors_and_files_are_bounded(program):
    program.create(b"f")
    found = [program.open(b"f") for _ in range(OPEN_FILES_MAX)]
    assert found[-1] == -Errno.MFILE
    for fd in found:
        if fd > 0:
            assert program.fd_close(fd) == 0
    for number in range(OUTPUT_FILES_MAX - 1):
        assert program.fd_close(program.create(f"f{number}".encode())) == 0
    assert program.open(b"one more", how=CREATE, rights=WRITE) == -Errno.NOSPC


def test_scratch_is_writable_and_forgotten(program):
    """The current directory of a program, and /tmp: C libraries look for both below "/"."""
    assert program.list(ROOT) == [".", "..", "in", "out", "tmp"]
    for path in (b"draft", b"tmp/draft", b"./tmp/../other"):
        fd = program.open(path, ROOT, how=CREATE | EXCLUSIVE, rights=READ | WRITE)
        assert program.write(fd, b"some") == 0
        assert program.fd_close(fd) == 0
        assert program.read(program.open(path, ROOT)) == b"some"
    assert program.path_rename(ROOT, *program.text(b"draft"), ROOT, *program.text(b"tmp/d", 9)) == 0
    assert program.list(program.open(b"tmp", ROOT)) == [".", "..", "d", "draft"]
    assert program.read(program.open(b"in/a", ROOT)) == b"first"
    assert program.open(b"in/c", ROOT, how=CREATE, rights=WRITE) == -Errno.ROFS
    assert program.open(b"../x", ROOT, how=CREATE, rights=WRITE) == -Errno.NOTCAPABLE
    assert program.state.files() == []
    program.open(b"out/kept", ROOT, how=CREATE, rights=WRITE)
    assert program.state.files() == [("kept", b"")]


def test_inputs_outputs_and_scratch_are_volumes_of_their_own(program):
    program.create(b"f")
    program.open(b"g", ROOT, how=CREATE, rights=WRITE)
    program.path_create_directory(ROOT, *program.text(b"d"))
    for base, name, other in ((OUT, b"f", ROOT), (ROOT, b"g", OUT), (ROOT, b"d", OUT)):
        moved = program.path_rename(base, *program.text(name), other, *program.text(b"n", 9))
        assert moved == Errno.XDEV
    assert link(program, b"g", b"n", base=ROOT) == Errno.XDEV
    assert link(program, b"in/a", b"n", base=ROOT) == Errno.XDEV
    for name in (b"in", b"out"):
        assert program.path_remove_directory(ROOT, *program.text(name)) == Errno.BUSY
        for pair in ((name, b"n"), (b"d", name)):
            before, after = pair
            errno = program.path_rename(
                ROOT, *program.text(before), ROOT, *program.text(after, 2048)
            )
            assert errno == Errno.BUSY
        assert program.path_create_directory(ROOT, *program.text(name)) == Errno.EXIST
    assert program.list(ROOT) == [".", "..", "d", "g", "in", "out", "tmp"]


def test_scratch_counts_as_memory_and_is_given_back(program):
    fd = program.open(b"f", ROOT, how=CREATE, rights=READ | WRITE)
    assert program.write(fd, b"x" * SCRATCH_BYTES) == 0
    assert program.machine.held == SCRATCH_BYTES
    assert program.fd_filestat_set_size(fd, 1) == 0
    assert program.machine.held == 1
    assert program.path_unlink_file(ROOT, *program.text(b"f")) == 0
    assert program.machine.held == 1  # it is open
    assert program.fd_close(fd) == program.machine.held == 0
    program.create(b"f", b"x" * OUTPUT_BYTES)  # the output has room of its own
    fd = program.open(b"f", ROOT, how=CREATE, rights=WRITE)
    assert program.write(fd, b"x" * SCRATCH_BYTES) == 0
    with pytest.raises(ProgramExit):
        program.write(fd, b"y")
    assert program.state.trap == "memory_exceeded: its files outside of /out count as memory"


def test_scratch_files_are_bounded_by_number_and_take_none_of_the_output(program):
    program.path_unlink_file(ROOT, *program.text(b"f"))
    for number in range(SCRATCH_FILES_MAX):
        at, size = program.text(f"tmp/{number}".encode())
        assert program.path_create_directory(ROOT, at, size) == 0
    assert program.open(b"more", ROOT, how=CREATE, rights=WRITE) == -Errno.NOSPC
    program.create(b"f")
    assert program.path_remove_directory(ROOT, *program.text(b"tmp/7")) == 0
    assert program.open(b"more", ROOT, how=CREATE, rights=WRITE) > ROOT


def test_descriptors_are_closed_and_moved(program):
    fd = program.create(b"f", b"data")
    assert program.fd_renumber(fd, 1) == 0
    assert program.write(1, b"more") == 0
    assert program.fd_close(fd) == Errno.BADF
    assert program.fd_renumber(1, 77) == program.fd_sync(77) == Errno.BADF
    assert program.fd_renumber(1, 1) == program.fd_sync(1) == program.fd_datasync(1) == 0
    assert program.state.files() == [("f", b"datamore")]


def test_rights_can_only_be_given_up(program):
    fd = program.create(b"f", b"data")
    assert program.fd_fdstat_set_rights(fd, READ, 0) == 0
    assert program.write(fd, b"x") == Errno.BADF
    assert program.fd_fdstat_set_rights(fd, READ | WRITE, 0) == Errno.NOTCAPABLE
    assert program.fd_fdstat_set_rights(fd, READ, 1) == Errno.NOTCAPABLE
    assert program.write(fd, b"x") == Errno.BADF
    assert program.fd_fdstat_get(fd, 0) == 0
    assert program.machine.number(8, "<Q") & (READ | WRITE) == READ


def test_preopened_directories_tell_their_names(program):
    for fd, name in ((IN, b"/in"), (OUT, b"/out"), (ROOT, b"/")):
        assert program.fd_prestat_get(fd, 0) == 0
        assert program.machine.number(4) == len(name)
        assert program.fd_prestat_dir_name(fd, 0, len(name)) == 0
        assert program.machine.read(0, len(name)) == name
        assert program.fd_prestat_dir_name(fd, 0, len(name) - 1) == Errno.NAMETOOLONG
    for fd in (0, 6):
        assert program.fd_prestat_get(fd, 0) == program.fd_prestat_dir_name(fd, 0, 9) == Errno.BADF


def test_what_does_not_exist_here_says_so(program):
    program.create(b"f")
    assert program.path_readlink(OUT, *program.text(b"f"), 0, 0, 0) == Errno.INVAL
    assert program.sched_yield() == 0
    for name in ("sock_accept", "sock_recv", "sock_send", "sock_shutdown"):
        rest = [0] * (len(SIGNATURES[name].params) - 1)
        assert program.state.call(name, [1, *rest]) == Errno.NOTSOCK
        assert program.state.call(name, [99, *rest]) == Errno.BADF
    assert program.proc_raise(9) == Errno.NOTSUP


def symlink(program, target, path):
    at, size = program.text(path)
    program.machine.write(9000, target)
    return program.path_symlink(9000, len(target), OUT, at, size)


def link(program, path, to, *, base=OUT):
    at, size = program.text(to)
    program.machine.write(9000, path)
    return program.path_link(base, 0, 9000, len(path), OUT, at, size)


def test_a_symbolic_link_leads_to_what_is_below_and_is_not_given_back(program):
    program.create(b"f", b"data")
    program.path_create_directory(OUT, *program.text(b"d"))
    for target, path in [(b"../f", b"d/l"), (b"d", b"e"), (b"e/l", b"m"), (b"new", b"n")]:
        assert symlink(program, target, path) == 0
    for path in (b"d/l", b"e/l", b"m", b"e/../f"):
        assert program.read(program.open(path, follow=True)) == b"data"
    assert program.open(b"m") == -Errno.LOOP
    assert program.open(b"e", how=DIRECTORY) == -Errno.NOTDIR
    assert program.open(b"e", how=DIRECTORY, follow=True) > 0
    assert program.open(b"n", follow=True) == -Errno.NOENT
    assert program.open(b"n", how=CREATE | EXCLUSIVE, follow=True) == -Errno.EXIST
    program.write(program.open(b"n", how=CREATE, rights=WRITE, follow=True), b"made")
    at, size = program.text(b"m")
    assert program.path_readlink(OUT, at, size, 8000, 2, 0) == 0
    assert (program.machine.number(0), program.machine.read(8000, 2)) == (2, b"e/")
    assert program.path_unlink_file(OUT, *program.text(b"e")) == 0
    assert program.state.files() == [("f", b"data"), ("new", b"made")]


def test_a_symbolic_link_is_refused_where_it_cannot_be(program):
    program.create(b"f")
    assert symlink(program, b"/etc", b"l") == Errno.NOTCAPABLE
    assert symlink(program, b"", b"l") == Errno.NOENT
    assert symlink(program, b"f", b"f") == Errno.EXIST
    assert symlink(program, b"f", b"l/") == Errno.NOENT
    program.machine.write(9000, b"f")
    assert program.path_symlink(9000, 1, IN, *program.text(b"l")) == Errno.ROFS


def test_links_that_lead_to_links_end(program):
    symlink(program, b"b", b"a")
    symlink(program, b"a", b"b")
    assert program.open(b"a", follow=True) == -Errno.LOOP
    # Each is followed once, but together they are longer than a path may be.
    for number in range(20):
        symlink(program, b"./" * 250 + b"c%d" % (number + 1), b"c%d" % number)
    program.create(b"c20")
    assert program.open(b"c14/../c14", follow=True) == -Errno.NOTDIR
    assert program.open(b"c15", follow=True) > 0
    assert program.open(b"c0", follow=True) == -Errno.LOOP


def test_every_name_of_a_file_counts_as_it_is_given_back(program):
    out = program.state._output
    fd = program.create(b"f", b"four")
    assert link(program, b"f", b"g") == 0
    assert out.taken == 8
    assert program.write(fd, b"more") == 0
    assert program.state.files() == [("f", b"fourmore"), ("g", b"fourmore")]
    assert out.taken == 16
    assert program.path_unlink_file(OUT, *program.text(b"f")) == 0
    assert out.taken == 8
    assert program.path_unlink_file(OUT, *program.text(b"g")) == 0
    assert program.fd_close(fd) == 0
    assert out.taken == 0


def test_a_second_name_is_refused_where_it_cannot_be(program):
    program.create(b"f", b"x")
    program.path_create_directory(OUT, *program.text(b"d"))
    assert link(program, b"f", b"f") == link(program, b"f", b"d") == Errno.EXIST
    assert link(program, b"d", b"e") == Errno.PERM
    assert link(program, b"f", b"g/") == link(program, b"none", b"g") == Errno.NOENT
    assert link(program, b"a", b"g", base=IN) == Errno.XDEV
    program.machine.write(9000, b"f")
    assert program.path_link(OUT, 1, 9000, 1, OUT, *program.text(b"g")) == Errno.INVAL


def test_second_names_cannot_give_back_more_than_is_allowed(program):
    program.create(b"f", bytes(program.state._output.most // 2))
    assert link(program, b"f", b"g") == 0
    with pytest.raises(ProgramExit):
        link(program, b"f", b"h")
    assert program.state.trap == "output_too_large"


def test_a_directory_is_no_file_and_a_file_no_directory(program):
    fd = program.create(b"f")
    assert program.fd_read(OUT, 0, 0, 0) == program.fd_write(OUT, 0, 0, 0) == Errno.ISDIR
    assert program.fd_seek(OUT, 0, 0, 0) == Errno.ISDIR
    assert program.fd_readdir(fd, 0, 0, 0, 0) == Errno.NOTDIR
    assert program.open(b"x", base=fd) == -Errno.NOTDIR


def nested(program, depth, name=b"d" * 250):
    """Make directories in each other; return the innermost one, how many, and what ended it."""
    base = OUT
    for made in range(depth):
        errno = program.path_create_directory(base, *program.text(name))
        if errno:
            return base, made, errno
        base = program.open(name, base, DIRECTORY)
    return base, depth, 0


def test_no_path_is_longer_than_an_answer_can_hold(program):
    base, made, errno = nested(program, 40)
    assert (made, errno) == (OUTPUT_PATH_BYTES_MAX // 251, Errno.NAMETOOLONG)
    room = OUTPUT_PATH_BYTES_MAX - made * 251
    long, short = b"f" * (room + 1), b"f" * room
    assert program.open(long, base, CREATE, WRITE) == -Errno.NAMETOOLONG
    assert program.path_symlink(*program.text(b"x", 512), base, *program.text(long)) == (
        Errno.NAMETOOLONG
    )
    fd = program.open(short, base, CREATE, WRITE)
    assert program.write(fd, b"data") == 0
    ((path, data),) = program.state.files()
    assert (len(path), data) == (OUTPUT_PATH_BYTES_MAX, b"data")
    assert is_output_path(path)
    assert not is_output_path(path + "f")


def test_no_renaming_and_no_second_name_makes_a_path_longer(program):
    program.create(b"f", b"data")
    base, made, _ = nested(program, 40)
    room = OUTPUT_PATH_BYTES_MAX - made * 251
    long, short = b"f" * (room + 1), b"f" * room
    old, new = program.text(b"f", 512), program.text(long)
    assert program.path_link(OUT, 0, *old, base, *new) == Errno.NAMETOOLONG
    assert program.path_rename(OUT, *old, base, *new) == Errno.NAMETOOLONG
    assert program.path_rename(OUT, *old, base, *program.text(short)) == 0
    # What lies below a directory gets longer with it.
    top = program.text(b"d" * 250, 512)
    assert program.path_rename(OUT, *top, OUT, *program.text(b"e" * 251)) == Errno.NAMETOOLONG
    assert program.path_rename(OUT, *top, OUT, *program.text(b"e" * 249)) == 0
    assert program.path_rename(base, *program.text(short), base, *program.text(long, 4096)) == 0
    ((path, data),) = program.state.files()
    assert (len(path), data) == (OUTPUT_PATH_BYTES_MAX, b"data")


def test_a_name_that_is_refused_takes_nothing_of_the_output(program):
    program.create(b"f", b"x" * OUTPUT_BYTES)
    for number in range(OUTPUT_FILES_MAX - 1):
        assert program.path_create_directory(OUT, *program.text(b"d%d" % number)) == 0
    assert program.path_link(OUT, 0, *program.text(b"f"), OUT, *program.text(b"g", 2048)) == (
        Errno.NOSPC
    )
    assert program.state.trap is None


def test_times_past_the_end_of_time_are_told_all_the_same():
    program = Program(Machine(fuel=2**60))
    program.machine.write(0, struct.pack("<QBxxxxxxxIxxxxQQH", 0, 0, 0, 2**64 - 1, 0, 0))
    for _ in range(3):
        assert program.poll_oneoff(0, 256, 1, 512) == 0
    program.create(b"f")
    assert program.path_filestat_get(OUT, 0, *program.text(b"f"), 256) == 0
    now_ns = START_NS + 3 * (2**64 - 1)
    assert abs(program.machine.number(256 + 40, "<Q") - now_ns % 2**64) < 10**6
