"""What a call costs without XSC: the bare engine, and a server of another runtime.

Neither of them signs, bills, orders, or survives a hostile module.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from statistics import median

import wasmtime

from benchmarks import load
from xsc.base.limits import FUEL_DEFAULT, MEMORY_BYTES_DEFAULT

NODE_SERVER = """
const http = require('http'), fs = require('fs');
const module_ = new WebAssembly.Module(fs.readFileSync(process.argv[1]));
const server = http.createServer((request, response) => {
  const parts = [];
  request.on('data', part => parts.push(part));
  request.on('end', () => {
    const [a, b] = JSON.parse(Buffer.concat(parts).toString());
    const instance = new WebAssembly.Instance(module_, {});
    const body = JSON.stringify({results: [String(instance.exports.add(a, b))]});
    response.writeHead(200, {'Content-Length': Buffer.byteLength(body)});
    response.end(body);
  });
});
server.keepAliveTimeout = 60000;
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
"""


def engine(module: bytes, count: int) -> float:
    """Return the seconds of one call in this process: fresh store, fuel, limits."""
    config = wasmtime.Config()
    config.consume_fuel = True
    bare = wasmtime.Engine(config)
    ready = wasmtime.Linker(bare).instantiate_pre(wasmtime.Module(bare, module))

    def call() -> None:
        store = wasmtime.Store(bare)
        store.set_limits(memory_size=MEMORY_BYTES_DEFAULT, instances=1, tables=1, memories=1)
        store.set_fuel(FUEL_DEFAULT)
        add = ready.instantiate(store).exports(store)["add"]
        assert isinstance(add, wasmtime.Func)
        assert add(store, 1, 2) == 3
        assert store.get_fuel() < FUEL_DEFAULT
        store.close()

    took = []
    for _ in range(4):
        begun = time.perf_counter()
        for _ in range(count):
            call()
        took.append((time.perf_counter() - begun) / count)
    return median(took[1:])


def node_js(path: str, count: int) -> list[load.Run] | None:
    """Return three rounds against an HTTP server of Node.js, None where there is none here."""
    program = shutil.which("node")
    if program is None:
        return None
    server = subprocess.Popen([program, "-e", NODE_SERVER, path], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        raw = load.request("127.0.0.1", "/", b"[1,2]")
        pids = load.family(server.pid)
        rounds = [load.drive(("127.0.0.1", port), [raw], count, 16, pids) for _ in range(4)]
    finally:
        server.kill()
        server.wait()
    assert all(b'"3"' in answer for answer in rounds[-1].answers)
    return rounds[1:]
