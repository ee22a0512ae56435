"""Rules stay rules: only modules listed here may touch the world.

A rule takes values and gives values. The clock, chance, the network, the disk,
other processes and `await` belong to the modules in `SHELL`, each named with its
reason, and to the programs at the top (node, client, cli). import-linter cannot
see this: it is about single modules, about calls, and about `async`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAMS = ("xsc.node", "xsc.client", "xsc.cli", "xsc.__main__")
"""They exist to touch the world."""

SHELL = {
    "xsc.allocation.allocating": "clears slots, publishes the outcome, answers offers",
    "xsc.allocation.explaining": "has the clearing records of other nodes fetched and recomputed",
    "xsc.allocation.records": "fetches the clearing records of other nodes and has them checked",
    "xsc.allocation.commitments": "writes the own commitment and weights, and looks up time zones",
    "xsc.api": "imports its subjects where they are first used",
    "xsc.base.clock": "declares the ports of time, chance and work",
    "xsc.base.gather": "lets calls wait for the batch that they share",
    "xsc.base.room": "lets holders wait for room that they share",
    "xsc.base.work": "names whoever a task works for",
    "xsc.base.turns": "lets one task after the other at what has a key",
    "xsc.compute.worker.code_cache": "keeps compiled code in files",
    "xsc.compute.worker.compiler": "starts, watches and kills jails",
    "xsc.compute.worker.confine": "takes rights from the worker's process",
    "xsc.compute.wasm.engine": "runs wasmtime",
    "xsc.compute.worker.jail": "the process that compiles one module",
    "xsc.compute.worker.queue": "gives quick calls to a worker and watches the time",
    "xsc.compute.worker.local": "the sandbox in this process",
    "xsc.compute.worker.mailbox": "memory that a worker reads code from",
    "xsc.compute.jobs.replicated": "asks several providers at once",
    "xsc.compute.worker.process": "starts, replaces and kills sandbox processes",
    "xsc.compute.worker.pool": "gives jobs to workers, and watches their time",
    "xsc.compute.jobs.executor": "runs orders and answers them",
    "xsc.compute.worker.runtime": "runs a module for a caller without a node",
    "xsc.compute.jobs.customer": "orders, and pays",
    "xsc.compute.jobs.runner": "runs tasks and orders in the sandbox",
    "xsc.compute.service": "connects customer and provider of runs",
    "xsc.compute.deployments.holder": "takes deployments of peers, answers requests",
    "xsc.compute.deployments.listing": "writes the list of services into the space",
    "xsc.compute.deployments.owner": "deploys, fetches receipts and pays peers",
    "xsc.compute.deployments.registry": "keeps services and their modules",
    "xsc.compute.deployments.service": "connects owner and holder of services",
    "xsc.compute.jobs.streams": "watches and cancels runs on other nodes",
    "xsc.compute.jobs.output_buffer": "lets readers wait for output",
    "xsc.compute.worker.main": "the sandboxed process itself",
    "xsc.dashboard.app": "answers a browser",
    "xsc.dashboard.page": "says how pages and actions are asked",
    "xsc.dashboard.pages.circle": "asks the node",
    "xsc.dashboard.pages.compute": "asks the node",
    "xsc.dashboard.pages.ledger": "asks the node",
    "xsc.dashboard.pages.market": "asks the node",
    "xsc.dashboard.pages.storage": "asks the node",
    "xsc.dashboard.source": "asks the node",
    "xsc.dashboard.views": "reads the templates",
    "xsc.monitor.alerts": "keeps alerts and tells programs and URLs",
    "xsc.monitor.events": "counts lines of threads",
    "xsc.monitor.history": "writes and reads the samples",
    "xsc.monitor.watch": "looks at the event loop",
    "xsc.db.group": "lets concurrent writes share one sync",
    "xsc.db.leveldb": "the one home of LevelDB",
    "xsc.health.attending": "watches calls that take long",
    "xsc.health.challenging": "challenges hosts, and answers challenges",
    "xsc.health.helping": "carries the pings of peers",
    "xsc.health.scoring": "keeps scores, and asks peers for theirs",
    "xsc.health.service": "probes peers",
    "xsc.identity.batch_signer": "gathers the records of one turn of the event loop",
    "xsc.identity.keyfile": "reads and writes the key file",
    "xsc.ledger.chain": "keeps the chain on the disk",
    "xsc.ledger.checkpoints": "asks peers to co-sign, and co-signs theirs",
    "xsc.ledger.forks": "keeps the proofs of forks",
    "xsc.ledger.gossip": "compares with peers, and spreads proofs through the space",
    "xsc.ledger.exchange": "asks peers for their histories, and recovers from them",
    "xsc.ledger.loops": "offers loops to peers, and signs and books them",
    "xsc.ledger.payments": "asks peers for accounts, and compares what operators say was paid",
    "xsc.ledger.proposals": "proposes entries to peers, and answers theirs",
    "xsc.ledger.seals": "seals entries with peers, and asks them for their cubes",
    "xsc.ledger.service": "retries proposals, and writes snapshots",
    "xsc.ledger.verifying": "verifies the ledger off the event loop",
    "xsc.market.buyer": "asks the providers that it chooses, and lets runs wait for others",
    "xsc.market.granter": "quotes, grants leases, and syncs what it counts of them",
    "xsc.market.signing": "takes leases on what clearings grant",
    "xsc.market.lease_store": "keeps leases on the disk",
    "xsc.market.providers": "asks providers for quotes and leases",
    "xsc.market.service": "starts the parts of the market, tidies and closes them",
    "xsc.market.settlement": "agrees with peers on counts, and signs and books vouchers",
    "xsc.market.waiting": "has calls wait in line",
    "xsc.net.transport.bounds": "bounds connections, bytes and the time of transfers",
    "xsc.net.transport.http": "the HTTP server, and the client between peers",
    "xsc.net.transport.memory": "a network inside one process",
    "xsc.net.calls.quota": "lets answers wait for their room",
    "xsc.net.calls.sender": "sends requests to peers",
    "xsc.net.calls.server": "answers requests of peers",
    "xsc.net.service": "calls peers, and lets small calls wait for each other",
    "xsc.net.transport.tls": "makes certificates, and shows them to who comes",
    "xsc.programs.running": "runs the frames of a program as values change",
    "xsc.programs.service": "keeps programs and their modules, begins and ends them",
    "xsc.programs.why": "asks peers for their records",
    "xsc.space.following": "begins and ends a task for each peer",
    "xsc.space.intervals": "asks for an interval",
    "xsc.space.answering": "lets questions of peers wait, and signs heads in time",
    "xsc.space.asking": "asks replicas",
    "xsc.space.sync": "follows peers, and stores what they answer",
    "xsc.space.replicas": "lets batches of one owner follow each other, and writes them",
    "xsc.space.store": "writes the own space",
    "xsc.space.watching": "lets watchers wait",
    "xsc.storage.catalogue.heads": "keeps the directory heads of peers and answers them",
    "xsc.storage.catalogue.finder": "asks peers for manifests and columns",
    "xsc.storage.catalogue.objects": "writes the entries of own objects",
    "xsc.storage.repair.assignment": "asks peers to be custodians",
    "xsc.storage.repair.node_watch": "lets transfers wait for their turn",
    "xsc.storage.repair.custodian": "answers owners, writes what is in custody, deletes copies",
    "xsc.storage.repair.drain": "says that this node leaves, hears it of peers, keeps orders",
    "xsc.storage.repair.mover": "leases room, copies and rebuilds columns, stores records",
    "xsc.storage.repair.maintained_object": "writes where objects are",
    "xsc.storage.repair.possession": "reads leaves, and has what is lost repaired",
    "xsc.storage.repair.repairer": "looks after objects, in rounds, has hosts delete copies",
    "xsc.storage.repair.surveyor": "asks hosts, and reads columns",
    "xsc.storage.shardstore.server": "answers customers about what lies here",
    "xsc.storage.transfer.sender": "sends columns to hosts",
    "xsc.storage.transfer.rooms": "asks for room at nodes",
    "xsc.storage.transfer.put": "moves segments between a stream and hosts",
    "xsc.storage.transfer.host_client": "calls hosts",
    "xsc.storage.transfer.race": "asks several hosts at once",
    "xsc.storage.transfer.get": "fetches segments ahead of who reads them",
    "xsc.storage.transfer.deep_read": "reads every shard of an object, from all hosts",
    "xsc.storage.service": "stores and fetches",
    "xsc.storage.transfer.journal": "keeps journals of puts, and ends what nobody goes on with",
    "xsc.storage.shardstore.store": "keeps shards on the disk",
    "xsc.storage.shardstore.compactor": "compacts the disk",
    "xsc.storage.shardstore.writer": "stores and deletes, one change after the other",
    "xsc.storage.sweeper": "drops what need not be kept, in time",
}

WORLD = {
    "aiohttp",
    "asyncio",
    "concurrent",
    "contextvars",
    "ctypes",
    "fcntl",
    "getpass",
    "glob",
    "http",
    "importlib",
    "locale",
    "logging",
    "mmap",
    "multiprocessing",
    "os",
    "pathlib",
    "platform",
    "plyvel",
    "queue",
    "random",
    "resource",
    "secrets",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "urllib",
    "uuid",
    "wasmtime",
    "zoneinfo",
}
PURE = {"urllib.parse"}
"""Modules of such packages that only compute."""
CALLS = {"open", "input", "print", "exec", "eval", "breakpoint"}
CLOCK_READS = {"now", "utcnow", "today"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / "xsc").rglob("*.py"))}


def trees_with(word: str, paths: Iterable[Path]) -> Iterator[tuple[str, ast.Module]]:
    """Return the places and trees of the files that have a word."""
    for path in paths:
        text = path.read_text()
        if word in text:
            yield place_of(path), ast.parse(text)


def place_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_protocol(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any(
        isinstance(part, ast.Name) and part.id == "Protocol"
        for base in node.bases
        for part in ast.walk(base)
    )


def outside_of_protocols(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a module, but not the methods that a port only declares."""
    for child in ast.iter_child_nodes(tree):
        if not is_protocol(child):
            yield child
            yield from outside_of_protocols(child)


def touches(tree: ast.Module) -> Iterator[str]:
    """What in a module reaches beyond values, as `line: what`."""
    for node in outside_of_protocols(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in WORLD:
                    yield f"{node.lineno}: import {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in WORLD and node.module not in PURE:
                yield f"{node.lineno}: from {node.module} import"
        elif isinstance(node, (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)):
            yield f"{node.lineno}: async"
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in CALLS:
                yield f"{node.lineno}: {node.func.id}()"
            elif (
                isinstance(node.func, ast.Attribute)
                and node.func.attr in CLOCK_READS
                and not node.args
            ):
                yield f"{node.lineno}: .{node.func.attr}()"


def test_only_the_shell_touches_the_world():
    rules = {
        path
        for name, path in MODULES.items()
        if name not in SHELL and not name.startswith(PROGRAMS)
    }
    found = {place: list(touches(tree)) for place, tree in trees_with("", rules)}
    assert {place: reaches for place, reaches in found.items() if reaches} == {}


def test_the_list_of_the_shell_is_true():
    """A module that was removed, or has become a rule, leaves the list."""
    assert sorted(SHELL.keys() - MODULES.keys()) == []
    shell = trees_with("", [MODULES[name] for name in SHELL])
    assert [place for place, tree in shell if not any(touches(tree))] == []


@pytest.mark.parametrize(
    "source",
    [
        "import os",
        "import os.path as p",
        "from time import monotonic",
        "from urllib.request import urlopen",
        "def f():\n    import random",
        "async def f(): ...",
        "class A:\n    async def f(self): ...",
        "x = open('f')",
        "from datetime import datetime\nx = datetime.now()",
        "class P(Protocol):\n    pass\nasync def f(): ...",
    ],
)
def test_the_check_sees_what_it_should(source):
    assert list(touches(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "import hashlib\nfrom dataclasses import dataclass",
        "class P(Protocol):\n    async def call(self) -> int: ...",
        "class P(Protocol[T]):\n    async def call(self) -> int: ...",
        "def f(now_ms: int) -> int:\n    return now_ms",
        "from urllib.parse import quote",
    ],
)
def test_the_check_lets_rules_and_ports_be(source):
    assert not list(touches(ast.parse(source)))


def test_every_module_says_what_it_decides():
    assert [
        place
        for place, tree in trees_with("", MODULES.values())
        if not (ast.get_docstring(tree) or "").split("\n")[0].strip()
    ] == []


def test_importing_a_package_starts_nothing():
    """A package's own module is its docstring. The root adds the version, client and API names."""
    bodies = {
        name: [ast.unparse(node).split(" = ")[0] for node in ast.parse(path.read_text()).body[1:]]
        for name, path in MODULES.items()
        if path.name == "__init__.py" and name not in {"xsc.client", "xsc.api"}
    }
    assert {name: body for name, body in bodies.items() if body} == {"xsc": ["__version__"]}


HEAVY = {"aiohttp", "asyncio", "cryptography", "plyvel", "pydantic", "rich", "wasmtime"}
QUICK = [
    "xsc.client",
    "xsc.client.core",
    *(name for name in MODULES if name.startswith("xsc.cli.")),
]


def heavy_imports(names, heavy):
    """Return what a new process says that imports modules, each without those packages."""
    code = f"""if True:
        import importlib, sys
        for name in {names!r}:
            importlib.import_module(name)
            if heavy := {heavy!r} & set(sys.modules):
                sys.exit(f"{{name}} imports {{heavy}}")
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stderr


def test_the_command_line_starts_without_heavy_packages():
    """They take longer to import than most commands to run; a command imports what it needs."""
    assert heavy_imports(QUICK, HEAVY) == (0, "")


def test_a_sandbox_worker_starts_without_what_only_a_node_needs():
    """Each node starts some: the record models took half of their start and 15 MB of each."""
    names = ["xsc.compute.worker.main", "xsc.compute.worker.jail"]
    assert heavy_imports(names, {"aiohttp", "cryptography", "plyvel", "pydantic"}) == (0, "")


SOURCES = [
    path
    for folder in ("xsc", "tests", "benchmarks", "scripts", "docs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".py", ".md", ".sh", ".html", ".js", ".css"}
    and path != Path(__file__)
    and path.name != "redoc.standalone.js"  # not ours
]
MARKS = {"TODO", "FIXME", "XXX", "HACK"}


def test_what_is_left_to_do_is_an_issue_and_not_a_comment():
    found = {
        place_of(path): MARKS.intersection(
            path.read_text().replace("(", " ").replace(":", " ").split()
        )
        for path in SOURCES
    }
    assert {place: marks for place, marks in found.items() if marks} == {}


TESTS = sorted((ROOT / "tests").rglob("*.py"))


TURN = "await asyncio.sleep(0)"
WAITS = {("tests/e2e/conftest.py", "wait_for")}
"""Looks again and again at real processes, up to a deadline: the one way to wait for them."""


def sleeps(tree: ast.AST, function: str = "") -> Iterator[tuple[str, int]]:
    """Every sleep but `sleep(0)`, as the function that it stands in and the line."""
    for node in ast.iter_child_nodes(tree):
        inside = (
            node.name if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
        )
        if (
            isinstance(node, ast.Call)
            and (
                (isinstance(node.func, ast.Attribute) and node.func.attr == "sleep")
                or (isinstance(node.func, ast.Name) and node.func.id == "sleep")
            )
            and not (
                node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
            )
        ):
            yield inside, node.lineno
        yield from sleeps(node, inside)


def test_no_test_sleeps():
    """A test that waits a fixed time is slow on good days and wrong on bad ones."""
    assert [
        f"{place}:{line}"
        for place, tree in trees_with("sleep", TESTS)
        for function, line in sleeps(tree)
        if (place, function) not in WAITS
    ] == []


def test_no_test_counts_turns_of_the_event_loop():
    """How many a call takes is no promise: `tests/settle.py` waits for what is one."""
    assert [
        f"{place}:{node.lineno}"
        for place, tree in trees_with("sleep", TESTS)
        if place != "tests/settle.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.For) and [ast.unparse(part) for part in node.body] == [TURN]
    ] == []


def test_every_folder_of_tests_is_a_package():
    """Two files of one name in different folders stop pytest otherwise."""
    folders = {path.parent for path in TESTS}
    assert [place_of(path) for path in folders if not (path / "__init__.py").exists()] == []


BROAD = {"Exception", "BaseException"}
SUPERVISORS = {
    "xsc.net.calls.server": "a bug answers 500 to the peer and is logged",
    "xsc.cli.main": "a bug prints one sentence and exits 1",
    "xsc.node.tasks": "a background task that fails is logged and started again",
    "xsc.node.api.app": "a bug answers 500 and is logged, the node goes on",
}


def test_nobody_catches_what_they_cannot_name():
    """Only what runs the work of others catches everything."""
    others = [path for name, path in MODULES.items() if name not in SUPERVISORS]
    assert [
        f"{place}:{node.lineno}"
        for place, tree in trees_with("except", others)
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (
            node.type is None
            or any(isinstance(part, ast.Name) and part.id in BROAD for part in ast.walk(node.type))
        )
        and not any(isinstance(part, ast.Raise) and part.exc is None for part in ast.walk(node))
    ] == []
