"""A download goes on where it was, and never with a byte that is not of it."""

import hashlib
import itertools
from contextlib import nullcontext

import pytest

from xsc.base.errors import ArgumentInvalid, NodeUnreachable
from xsc.client.files import BLOCK_BYTES, Partial, fetch, object_id

CAP, OTHER = "xsc:r:one", "xsc:r:two"
SIZE = 2 * BLOCK_BYTES + 1000
CONTENT = hashlib.shake_256(b"partial").digest(SIZE)


class Source:
    """An object that can be opened anywhere and breaks off after some bytes."""

    def __init__(self, content=CONTENT, breaks_after=None, chunk=2**18):
        self.chunk = chunk
        self.content = content
        self.breaks_after = breaks_after
        self.sent = 0
        self.asked = []

    def open(self, part):
        self.asked.append(part)
        return Stream(self, 0 if part is None else int(part.removesuffix("-")), part is not None)


class Stream:
    def __init__(self, source, start, ranged):
        self.source, self.start = source, start
        size = len(source.content)
        self.size_bytes = size - start
        self.part = (start, size) if ranged else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def blocks(self, progress):
        source = self.source
        for start in range(self.start, len(source.content), source.chunk):
            block = source.content[start : start + source.chunk]
            if source.breaks_after is not None and source.sent + len(block) > source.breaks_after:
                raise NodeUnreachable("broke off")
            source.sent += len(block)
            yield block
            progress(len(block))


def get(source, path, capability=CAP):
    seen = []

    def watch(size):
        assert size == len(source.content)
        return nullcontext(seen.append)

    size = fetch(source.open, capability, path, watch)
    assert sum(seen) == size or not seen
    return size


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def interrupted(path, after, capability=CAP, content=CONTENT):
    source = Source(content, after)
    with pytest.raises(NodeUnreachable):
        get(source, path, capability)
    return source


def test_a_file_comes_whole(tmp_path):
    assert get(Source(), tmp_path / "f") == SIZE
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, 2 * BLOCK_BYTES])
def test_every_length_comes_whole(tmp_path, size):
    assert get(Source(CONTENT[:size]), tmp_path / "f") == size
    assert (tmp_path / "f").read_bytes() == CONTENT[:size]
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("after", [0, BLOCK_BYTES - 1, BLOCK_BYTES + 500_000, SIZE - 1])
def test_nothing_comes_twice_where_the_node_breaks_off(tmp_path, after):
    path = tmp_path / "f"
    first = interrupted(path, after)
    again = Source(chunk=300_001)
    assert get(again, path) == SIZE
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["f"]
    assert again.asked == [f"{first.sent}-" if first.sent else None]
    assert first.sent + again.sent == SIZE


@pytest.mark.parametrize("after", [0, 5, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 5, SIZE - 1])
def test_at_most_one_block_comes_twice_where_the_client_is_killed(tmp_path, after):
    path = tmp_path / "f"
    whole, under_way = divmod(after, BLOCK_BYTES)
    with Partial(path, object_id(CAP)) as partial:
        partial.restart(SIZE)
        partial.fill(CONTENT[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES] for i in range(whole))
        left = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for file, data in left.items():
        file.write_bytes(data)
    with (tmp_path / "f.part").open("ab") as part:
        part.write(CONTENT[after - under_way : after])
    again = Source()
    assert get(again, path) == SIZE
    kept = whole * BLOCK_BYTES
    assert again.asked == [f"{kept}-" if kept else None]
    assert path.read_bytes() == CONTENT


def test_many_interruptions_come_to_an_end(tmp_path):
    path, sent = tmp_path / "f", 0
    for after in (BLOCK_BYTES + 700_000, 300_000, 100_000):
        sent += interrupted(path, after).sent
    last = Source()
    get(last, path)
    assert path.read_bytes() == CONTENT
    assert sent + last.sent == SIZE


def test_nothing_stays_where_no_block_came(tmp_path):
    interrupted(tmp_path / "f", 1000)
    assert names(tmp_path) == []


def test_what_was_there_stays_until_the_new_is_whole(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"before")
    interrupted(path, BLOCK_BYTES + 700_000)
    assert path.read_bytes() == b"before"
    get(Source(), path)
    assert path.read_bytes() == CONTENT


def test_the_part_of_another_object_is_not_mixed_in(tmp_path):
    path = tmp_path / "f"
    other = bytes(SIZE)
    interrupted(path, BLOCK_BYTES + 700_000, OTHER, other)
    source = Source()
    get(source, path)
    assert source.asked == [None]
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("sums", [None, b"", b"xsc part 2 \n", b"\xff\xfe", b"xsc part 3 x 5\n"])
def test_a_part_without_good_sums_is_not_used(tmp_path, sums):
    path = tmp_path / "f"
    (tmp_path / "f.part").write_bytes(bytes(SIZE))
    if sums is not None:
        (tmp_path / "f.part.sums").write_bytes(sums)
    get(Source(), path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("place", [0, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES - 1])
def test_a_byte_that_changed_is_fetched_again(tmp_path, place):
    path = tmp_path / "f"
    interrupted(path, SIZE - 1)
    part = bytearray((tmp_path / "f.part").read_bytes())
    part[place] ^= 1
    (tmp_path / "f.part").write_bytes(part)
    source = Source()
    get(source, path)
    kept = place // Source().chunk * Source().chunk
    assert source.asked == [f"{kept}-" if kept else None]
    assert path.read_bytes() == CONTENT


def test_every_cut_of_the_sums_and_of_the_part_is_recovered_from(tmp_path):
    """What a power loss may leave: either file shorter, or grown by zeros."""
    path = tmp_path / "f"
    interrupted(path, SIZE - 1)
    part = (tmp_path / "f.part").read_bytes()
    sums = (tmp_path / "f.part.sums").read_bytes()
    line = len(sums) - sums[:-1].rindex(b"\n") - 1
    lengths = [0, 1, *(len(sums) - back for back in (2 * line + 1, line + 1, line, 1, 0))]
    parts = [part[:BLOCK_BYTES], part[: BLOCK_BYTES - 1], part + bytes(9), bytes(len(part))]
    for length, left in itertools.product(lengths, parts):
        (tmp_path / "f.part").write_bytes(left)
        (tmp_path / "f.part.sums").write_bytes(sums[:length])
        get(Source(), path)
        assert path.read_bytes() == CONTENT
        assert names(tmp_path) == ["f"]


def test_a_whole_part_needs_nothing_more(tmp_path):
    path = tmp_path / "f"
    content = CONTENT[: 2 * BLOCK_BYTES]
    with Partial(path, object_id(CAP)) as partial:
        partial.restart(len(content))
        partial.fill([content])
    source = Source(content)
    assert get(source, path) == len(content)
    assert source.asked == []
    assert path.read_bytes() == content


def test_a_node_that_gives_another_object_is_not_believed(tmp_path):
    path = tmp_path / "f"
    interrupted(path, BLOCK_BYTES + 700_000)
    with pytest.raises(ArgumentInvalid, match="another object"):
        get(Source(CONTENT + b"x"), path)


def test_two_downloads_to_one_file_do_not_mix(tmp_path):
    path = tmp_path / "f"
    with (
        Partial(path, object_id(CAP)),
        pytest.raises(ArgumentInvalid, match="another process writes"),
    ):
        get(Source(), path)
    assert get(Source(), path) == SIZE


def test_the_capability_does_not_stand_in_the_sums(tmp_path):
    interrupted(tmp_path / "f", SIZE - 1)
    assert CAP.encode() not in (tmp_path / "f.part.sums").read_bytes()


def test_a_device_is_written_to_and_a_directory_refused(tmp_path):
    assert get(Source(), tmp_path.__class__("/dev/null")) == SIZE
    with pytest.raises(ArgumentInvalid, match="is a directory"):
        get(Source(), tmp_path)
