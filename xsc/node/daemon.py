"""One node in the foreground: start, serve, stop.

The lock is taken before anything is read, the API's place is published last
and taken away first, and SIGTERM or SIGINT end the node through the same door:
no new requests, running ones finish, databases close.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Final

from xsc.api import endpoint, table
from xsc.api.monitor import METRICS
from xsc.base import errors, ids, limits, units
from xsc.base.progress import Watch, unwatched
from xsc.compute.worker import code_cache, pool
from xsc.dashboard.app import Dashboard
from xsc.identity import keyfile
from xsc.monitor.events import CountedLog
from xsc.net.peers.invitation import SCHEME, from_string
from xsc.net.transport import addresses, bounds, http
from xsc.net.transport.http import Server as HttpServer
from xsc.node import checking, system
from xsc.node.api import app, serving
from xsc.node.api.deployments import ServiceListener
from xsc.node.build import Node, Parts
from xsc.node.config import Config, load
from xsc.node.home import folder as homes
from xsc.node.home import recover, stores
from xsc.node.logging import JsonLog, SentenceLog, node_log
from xsc.node.routes import monitor
from xsc.terms.quote import UNITS

SCRAPERS_MAX = 16
"""Connections to `metrics_listen`."""
API_CONNECTIONS_MAX = 512
"""Connections from this machine to the API."""

CAPACITY_AUTO_BYTES_MAX = 100 * limits.GIB
SHUTDOWN_TIMEOUT_MS = 10_000
"""How long running requests of the API and of services may take to end."""
CANCEL_TIMEOUT_MS = 1_000
WORK_THREADS = 8
GARBAGE_THRESHOLD = 10_000
"""Containers made and not freed, after which Python looks for cycles among the newest."""
FREED_BYTES_KEPT = 64 * limits.MIB
"""Memory that the process keeps for its next buffers: those of a few segments."""
MEMORY_INTERVAL_MS = 60_000
"""How often the rest is given back."""

_ROUTES: Final = {
    subject: vars(import_module(subject.__name__.replace("xsc.api", "xsc.node.routes")))
    for subject in table.SUBJECTS
}
ANSWERS: Final[serving.Answers] = {
    each: routes.get(name.lower()) or routes[f"{name.lower()}_"]
    for subject, routes in _ROUTES.items()
    for name, each in vars(subject).items()
    if isinstance(each, endpoint.Endpoint)
}
"""What answers each endpoint of `/v1`: of the module of its subject the function of its name, in
small letters; with an underline behind it where that is a word of Python. None is missing."""


def _open(path: Path, passphrase: str, flags: Mapping[str, str]) -> tuple[homes.Home, Config]:
    """Return a locked home and its settings, completed by what it has chosen before.

    The automatic capacity is chosen once: half of what is free now would shrink with every
    start of a node that fills up. A port that the system gave stays, so that peers find it.
    """
    config = load(path, os.environ, flags)
    home = homes.open_home(path, passphrase)
    os.umask(0o077)
    capacity = homes.capacity_of(path, config.storage_capacity_bytes)
    if capacity is None:
        free = homes.free_bytes(path, config.disk_reserve_ppm)
        capacity = min(CAPACITY_AUTO_BYTES_MAX, max(1, free // 2))
        homes.write_number(path / "capacity", capacity)
    host, port = addresses.split(config.peer_listen)
    known = homes.read_number(path / "peer.port")
    if port == 0 and known is not None and known < 65536:
        port = known
    chosen = {"storage_capacity_bytes": capacity, "peer_listen": f"{host}:{port}"}
    return home, config.model_copy(update=chosen)


def _node(home: homes.Home, config: Config, log: CountedLog, *, recovering: bool = False) -> Node:
    clock = system.SystemClock()
    parts = Parts(
        clock=clock,
        entropy=system.SystemEntropy(),
        executor=system.ThreadExecutor(WORK_THREADS),
        transport=http.HttpTransport(
            listen=config.peer_listen, key=home.key, connections_max=system.connections_of_a_kind()
        ),
        stores=stores.open_stores(home.databases, log),
        sandbox=pool.PoolSandbox(
            config.compute_workers,
            clock,
            log,
            code_cache.CodeCache(home.path / "cache", home.key.derive("compiled-code")),
            compile_ms=config.compile_limit_ms,
            own=home.key.node_id,
        ),
        log=log,
        disk_free_bytes=partial(homes.free_bytes, home.path, config.disk_reserve_ppm),
        checking=checking.processes,
    )
    return Node(config, home.key, home.network, parts, recovering=recovering)


def banner(node: Node) -> list[str]:
    """Return what `xsc node start` prints: who the node is, where, and what it offers."""
    config = node.config
    offers = (
        f"offers {units.format_size(node.capacity.free('storage'))} of storage from "
        f"{units.format_credits(config.storage_price_micro)} credits a {UNITS['storage']}, "
        f"{config.compute_workers} compute workers from "
        f"{units.format_credits(config.compute_price_micro)} credits a {UNITS['compute']}"
    )
    return [
        f"node {ids.to_text(node.key.node_id)}",
        f"name {config.name}, network {node.network}",
        f"peers reach it at {', '.join(node.peers.own_address.addresses())}",
        offers if config.offer == "all" else "offers what is stated by xsc market offer alone",
    ]


def _publish(node: Node, home: Path, token: str) -> None:
    """Write to the home where the node listens, and print it."""
    homes.remember_port(home, node.peer_url)
    homes.publish(home, api_url=node.api_url, peer_url=node.peer_url, token=token)
    for line in banner(node):
        _say(line)
    _say(f"API at {node.api_url}, token in {home / 'api.token'}")
    if node.services.registry.url:
        _say(f"services at {node.services.registry.url}/fn/OWNER/NAME")


async def serve(home: homes.Home, config: Config) -> None:
    """Run a node until the process is told to end."""
    clock = system.SystemClock()
    log = CountedLog(node_log(clock, config.log_level, sys.stderr), clock)
    logging.getLogger().addHandler(app.Reports(log))
    lack = homes.capacity_fault(home.path, config.storage_capacity_bytes, config.disk_reserve_ppm)
    if lack:
        log.warning("storage.capacity_beyond_disk", fault=lack)
    node = _node(home, config, log)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, node.end)
    await node.start()
    node.tasks.start("watch", node.watch.run)
    node.tasks.start("monitor", partial(monitor.run, node))
    give_back = partial(node.parts.executor.run, system.give_back_memory, FREED_BYTES_KEPT)
    node.tasks.every("memory", MEMORY_INTERVAL_MS, give_back)
    # What a start leaves stays to the end: it need not be looked through for garbage again
    # and again, nor what requests make as often as for a small program.
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)
    most = system.connections_of_a_kind()
    services = ServiceListener(node, connections_max=min(limits.SERVICE_CONNECTIONS_MAX, most))
    token = ids.to_text(system.SystemEntropy().token(homes.TOKEN_BYTES))
    most = min(API_CONNECTIONS_MAX, most)
    node.home = home.path
    node.space.on_change(node.watch.changed)
    server = serving.Server(node, ANSWERS)
    pages = Dashboard(server, ids.to_text(node.key.node_id), node.sessions, clock)
    answer = app.application(
        server.routes(),
        token,
        log,
        node.peer_names,
        also={METRICS.path: [homes.metrics_token(home.path)]},
        dashboard=pages,
    )
    api = HttpServer(
        answer,
        bounds.Gate(most=most, share=most, idle_ms=app.KEEP_ALIVE_MS),
        open_paths=(*app.OPEN, *pages.open_paths),
    )
    metrics = HttpServer(
        app.only(METRICS.path, answer),
        bounds.Gate(most=SCRAPERS_MAX, share=SCRAPERS_MAX, idle_ms=app.KEEP_ALIVE_MS),
    )
    supervisor = system.Supervisor(log)

    async def listen(server: HttpServer, setting: str) -> str:
        """Start a server where a setting says, and return its URL."""
        host, port = addresses.split(getattr(config, setting))
        return f"http://{host}:{await server.start(host, port, setting)}"

    try:
        node.api_url = await listen(api, "api_listen")
        if config.metrics_listen:
            _say(f"metrics at {await listen(metrics, 'metrics_listen')}{METRICS.path}")
        if config.services_listen:
            found = await listen(services, "services_listen")
            node.services.registry.url = config.services_url.rstrip("/") or found
            node.services.registry.changed.set()
        _publish(node, home.path, token)
        supervisor.tell(system.READY)
        assuring = asyncio.create_task(supervisor.assure())
        fault = await node.ended
        node.log.info("node.stopping")
        if fault is not None:
            raise fault
        assuring.cancel()
        supervisor.tell(system.STOPPING)
    finally:
        homes.unpublish(home.path)
        api.end()
        metrics.end()
        pages.end()
        node.space.end_watches()
        node.programs.end_watches()
        await asyncio.gather(api.answered(SHUTDOWN_TIMEOUT_MS), services.stop(SHUTDOWN_TIMEOUT_MS))
        await asyncio.gather(api.stop(CANCEL_TIMEOUT_MS), metrics.stop(CANCEL_TIMEOUT_MS))
        await node.stop()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def _come_back(
    home: homes.Home,
    config: Config,
    log: CountedLog,
    places: Sequence[str] = (),
    *,
    without_silent: bool = False,
    watch: Watch = unwatched,
) -> recover.Returned:
    """Have a node that serves nobody ask its peers what it was; then its home is finished."""
    node = _node(home, config, log, recovering=True)
    try:
        recovering = homes.stage_of(home.path) == "recovering"
        found = await recover.find_objects(
            node, places, recovering=recovering, without_silent=without_silent, watch=watch
        )
        done = await recover.begin_signing(node, found)
        homes.remember_port(home.path, node.peer_url)
    finally:
        await node.stop_recovering()
    homes.finish(home.path)
    return done


def begin_recovery(
    path: Path,
    identity: str,
    places: Sequence[str],
    *,
    network: str | None,
    name: str | None,
    passphrase: str,
) -> None:
    """Make a home of an exported key, which is then to be brought back.

    Args:
        path: an empty directory, or a home whose recovery was begun.
        identity: text of the exported key file.
        places: what `bring_back` is given, too.
        network: the network's name; that of the first invitation if None.
        name: what the node calls itself.
        passphrase: opens the key.

    Raises:
        XscError: why it cannot be begun.
    """
    keyfile.from_line(identity, passphrase)
    for place in places:
        recover.parse_place(place)  # before anything is written: a begun home takes no backup
    with homes.lock(path):
        begun = homes.stage_of(path) == "recovering"
        if begun and homes.has_key(path):
            return
        if network is None:
            invited = [text for text in places if text.startswith(SCHEME)]
            network = from_string(invited[0]).network if invited else None
        if homes.is_home(path) and not begun:
            homes.init_home(path)  # says why it cannot be
        homes.mark(path, "recovering")
        homes.init_home(path, passphrase=passphrase, name=name, network=network, recover=identity)


_NOT_BEGUN: Final[Mapping[homes.Stage, tuple[str, str]]] = {
    "recovering": ("no recovery was begun", "give the exported key file, too"),
    "restored": ("no restore is to be finished", "give the backup, too"),
}


def bring_back(
    path: Path,
    stage: homes.Stage,
    passphrase: str,
    places: Sequence[str] = (),
    *,
    without_silent: bool = False,
    watch: Watch = unwatched,
) -> tuple[str, recover.Returned]:
    """Finish the recovery or restore of a home by what its peers hold; return id and report.

    Args:
        path: the home.
        stage: how far it must be.
        passphrase: opens the key.
        places: invitations of peers, or `ID@HOST:PORT`.
        without_silent: go on without peers that do not answer.
        watch: shows how many objects are found.

    Raises:
        HomeInvalid: there is nothing to finish.
        XscError: why it is not finished; the same call again goes on.
    """
    with homes.lock(path):
        if homes.stage_of(path) != stage:
            said, hint = _NOT_BEGUN[stage]
            raise errors.HomeInvalid(f"{said} at {path}", hint=hint)
        home, config = _open(path, passphrase, {})
        log = CountedLog(SentenceLog(system.SystemClock()), system.SystemClock())
        back = _come_back(home, config, log, places, without_silent=without_silent, watch=watch)
        return ids.to_text(home.key.node_id), asyncio.run(back)


def main(path: Path, overrides: Mapping[str, str], passphrase: str = "") -> int:
    """Run the node at a home in the foreground; return its exit code.

    Args:
        path: the home; made where there is none.
        overrides: settings given as flags.
        passphrase: opens a locked key file.

    Raises:
        XscError: why it cannot start.
    """
    with homes.lock(path):
        homes.check_whole(path)
        home, config = _open(path, passphrase, overrides)
        clock = system.SystemClock()
        log = CountedLog(JsonLog(clock, config.log_level), clock)
        if homes.stage_of(path) is not None:
            done = asyncio.run(_come_back(home, config, log))
            _say(f"came back with {done.entries} ledger entries, from {done.peers} peers")
        system.keep_freed_memory(FREED_BYTES_KEPT)
        system.raise_descriptors()
        asyncio.run(serve(home, config))
    return 0
