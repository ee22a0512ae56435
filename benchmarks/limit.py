"""What this machine can do at most: the storage path in one process, without a network.

Put limit: AES-256-GCM, Reed-Solomon 4+2, BLAKE3 Merkle roots and synced writes
into six LevelDB stores, two threads. Get limit: reads of four shards, their
roots, decoding and deciphering, two threads. The same functions as the node's,
which leaves LevelDB's own sums to scans where a root is checked.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.size import least
from xsc.base.limits import MIB, SEGMENT_BYTES
from xsc.base.merkle import root_of
from xsc.db.leveldb import LevelDBKeyValue
from xsc.storage.object.erasure import Code, decode, encode
from xsc.storage.object.segment import Place, open_sealed, seal

CODE = Code(4, 2)
THREADS = 2
ROUNDS = least(5, 1)
"""One reading goes from 600 to 1 400 MB/s on the same machine within minutes."""


def _threads(work: Callable[[int], None]) -> float:
    begun = time.perf_counter()
    running = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return time.perf_counter() - begun


def measure(size_bytes: int) -> tuple[float, float]:
    """Return put and get in MB (10^6 bytes of user data) a second, medians of some rounds."""
    rounds = [_round(size_bytes) for _ in range(ROUNDS)]
    return median(put for put, _ in rounds), median(get for _, get in rounds)


def _round(size_bytes: int) -> tuple[float, float]:
    segments = max(1, size_bytes // SEGMENT_BYTES)
    data = [os.urandom(SEGMENT_BYTES) for _ in range(4)]
    key, locate = os.urandom(32), os.urandom(32)
    with tempfile.TemporaryDirectory(prefix="xsc-limit-") as folder:
        stores = [LevelDBKeyValue(Path(folder) / str(column)) for column in range(6)]

        tags: dict[int, bytes] = {}

        def place(index: int) -> Place:
            return Place(locate=locate, index=index, length=SEGMENT_BYTES, final=False)

        def nonce(index: int) -> bytes:
            return index.to_bytes(12, "big")

        def put(thread: int) -> None:
            for index in range(thread, segments, THREADS):
                sealed, tags[index] = seal(key, nonce(index), place(index), data[index % 4])
                for column, shard in enumerate(encode(sealed, CODE)):
                    root_of(shard)
                    stores[column].write([(index.to_bytes(8, "big"), bytes(shard))], sync=True)

        def get(thread: int) -> None:
            for index in range(thread, segments, THREADS):
                shards = {}
                for column in (0, 1, 2, 4):
                    raw = stores[column].get(index.to_bytes(8, "big"), verify=False)
                    assert raw is not None
                    root_of(raw)
                    shards[column] = raw
                sealed = decode(shards, CODE, SEGMENT_BYTES)
                open_sealed(key, nonce(index), tags[index], place(index), sealed)

        put_s = _threads(put)
        get_s = _threads(get)
        for store in stores:
            store.close()
    moved = segments * SEGMENT_BYTES / 1e6
    return moved / put_s, moved / get_s


if __name__ == "__main__":
    put_rate, get_rate = measure(256 * MIB)
    print(f"put limit {put_rate:.0f} MB/s, get limit {get_rate:.0f} MB/s")
