"""Objects: put, get, list, stat, check, repair, remove."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from xsc.api import endpoint, problems
from xsc.api import objects as api
from xsc.base import errors, ids, limits
from xsc.base.turns import sliced
from xsc.node.api.serving import Body, Download
from xsc.node.build import Node
from xsc.node.jobs import from_hex
from xsc.storage.catalogue.names import PART, check_name, listed
from xsc.storage.object.capability import VerifyCapability
from xsc.storage.object.durability import parse as parse_contract
from xsc.storage.repair.possession import unproven
from xsc.storage.service import in_order


def _introducers(node: Node, found: api.Checked) -> list[api.Introducer]:
    """Return the introducers of an object's hosts, the one of most hosts first."""
    hosts = {host.node for host in found.hosts if host.state == "ok" and host.node}
    introducers = {ids.to_text(host): node.peers.roster.introducer_of(host) for host in hosts}
    every = Counter(introducers.values())
    # One that is a host itself was not brought by anybody.
    brought = Counter(by for host, by in introducers.items() if by not in ("", host))
    return [
        api.Introducer(id=ids.from_text(by), hosts=every[by], brought=count)
        for by, count in brought.most_common()
    ]


def code_of(given: str | None) -> tuple[int, int]:
    """Return the numbers of data and parity shards; the default ones where none are given.

    Raises:
        ArgumentInvalid: they are no code.
    """
    if given is None:
        return limits.DATA_SHARDS_DEFAULT, limits.PARITY_SHARDS_DEFAULT
    match = re.fullmatch(r"([0-9]{1,3}),([0-9]{1,3})", given)
    if match is None or int(match[1]) < 1 or int(match[1]) + int(match[2]) > limits.SHARDS_MAX:
        raise errors.ArgumentInvalid(
            f"'{given}' is no code: K,M with K at least 1 and K+M at most {limits.SHARDS_MAX}",
            hint="write for example 4,2",
        )
    return int(match[1]), int(match[2])


def _part(given: str) -> str:
    """Return the name of a file of a stored directory; it stands in no list of names."""
    if not re.fullmatch(r"[0-9a-f]{64}/[0-9a-f]{64}", given):
        raise errors.ArgumentInvalid("a part is named by two times 64 hexadecimal digits")
    return PART + given


def _upload_id(given: str) -> bytes:
    return from_hex(given, "the id of an upload must be 64 hexadecimal digits")


async def put(node: Node, asked: api.Put, body: Body) -> api.Stored:
    """Store a stream."""
    name = asked.name if asked.part is None else _part(asked.part)
    if asked.part is None:
        check_name(name)
    code = code_of(asked.code)
    done = await node.storage.put(
        body.pieces(),
        name=name,
        size_hint=asked.size_bytes,
        contract=None if asked.survive is None else parse_contract(asked.survive),
        code=code,
        resume=None if asked.resume is None else _upload_id(asked.resume),
    )
    warnings = list(done.warnings)
    if asked.wait_for_name:
        told, wanted = await node.directory.told(code[0])
        if told < wanted:
            warnings.append(
                f"the name is at {told} of {wanted} peers by now: if this home were lost at this "
                "moment, its recovery might not know the name; the node goes on telling them"
            )
    return endpoint.filled(
        api.Stored,
        done,
        name=name,
        hosts=[api.Column(shard=shard, node=host) for shard, host in enumerate(done.hosts)],
        survives_nodes=done.survives.nodes,
        survives=done.survives.to_text(),
        warnings=warnings,
    )


async def get(node: Node, asked: api.Get) -> Download:
    """Read an object."""
    reader = await node.storage.open(asked.capability)
    return Download(reader.stream, reader.size_bytes, asked.range)


async def contents(node: Node, asked: api.Together) -> api.Contents:
    """Read small objects together."""
    return api.Contents(contents=await node.storage.contents(asked.capabilities))


async def upload(node: Node, asked: endpoint.Id) -> api.Upload:
    """Say how much of a put is stored."""
    stored_bytes = await node.storage.resume_journals.stored_bytes(_upload_id(asked.id))
    return api.Upload(stored_bytes=stored_bytes)


async def fault(node: Node, asked: endpoint.Id) -> problems.Problem:
    """Say why an answer broke off."""
    found = node.faults.get(asked.id)
    if found is None:
        raise errors.NotFound("nothing is known of that request")
    return found


async def list_(node: Node, asked: api.Under) -> list[api.Object]:
    """List the objects of this node."""
    check_name(asked.prefix)
    rows = sorted([row async for row in sliced(node.storage.rows())], key=in_order)
    return listed(rows, asked.prefix, versions=asked.versions)


async def parts(node: Node, asked: api.Directory) -> list[api.Part]:
    """List files of a directory."""
    from_hex(asked.part, "a directory is named by 64 hexadecimal digits")
    prefix = f"{PART}{asked.part}/"
    return [
        endpoint.filled(api.Part, entry, part=entry.name.removeprefix(prefix))
        for _, entry in node.storage.catalogue.entries()
        if entry.name.startswith(prefix) and not entry.deleting
    ]


async def restore(node: Node, asked: api.Name) -> api.Restored:
    """Make an older version the newest."""
    if asked.version is None:
        raise errors.ArgumentInvalid("the version that is to be restored is not named")
    check_name(asked.name)
    made = await node.storage.catalogue.restore(asked.name, asked.version)
    return api.Restored(version=made)


async def named(node: Node, asked: api.Versions) -> Sequence[str]:
    """Find versions of a name."""
    check_name(asked.name)
    return node.storage.catalogue.named(asked.name, asked.version, deleting=asked.deleting)


async def stat(node: Node, asked: api.Capability) -> api.Stat:
    """Ask the hosts of an object."""
    return await node.storage.stat(asked.capability)


async def repair(node: Node, asked: api.Capability) -> api.Repaired:
    """Repair an object now."""
    return await node.storage.repair(asked.capability)


async def repairs(node: Node, _: endpoint.Nothing) -> list[api.Repair]:
    """List the repairs that run, and after them those that moved something of late."""
    repairer = node.storage.repairer
    running = [(ref, at_ms, None) for ref, at_ms in repairer.under_way.items()]
    return [
        api.Repair(
            object=ref,
            name=node.storage.catalogue.shown_name(ref),
            runs=done is None,
            at_ms=at_ms,
            moved=() if done is None else done.moved,
            left=0 if done is None else len(done.left),
            reason="" if done is None else done.reason,
        )
        for ref, at_ms, done in [*running, *reversed(repairer.recent)]
    ]


async def _proofs(
    node: Node, verify: VerifyCapability, nodes: Sequence[bytes | None]
) -> list[api.Proof]:
    """Have the nodes of an object's columns prove what they hold of it."""
    owner, holdings = await node.storage.possessions.of_object(verify, nodes)
    done = await node.challenges.prove_object(owner, verify.locate, holdings)
    return [
        endpoint.filled(
            api.Proof,
            proved,
            node=proved.host,
            shards=unproven(proved.host, nodes, proved.outcome, proved.names),
        )
        for proved in done
    ]


async def check(node: Node, asked: api.Check) -> api.Checked:
    """Say what a placement is worth."""
    found = await node.storage.check(
        asked.capability,
        deep=asked.deep,
        prove=partial(_proofs, node) if asked.prove else None,
        lives_ms=node.config.lives_ms,
        repair_ms=node.config.repair_time_ms,
        watch=node.works.watch_of(asked.work),
    )
    return replace(found, introducers=_introducers(node, found))


async def remove(node: Node, asked: api.Capability) -> api.Removed:
    """Delete an object."""
    done = await node.storage.rm(asked.capability)
    return endpoint.filled(
        api.Removed,
        done,
        unconfirmed=done.unreachable,
        receipts={ids.to_text(receipt.author): receipt.raw for receipt in done.receipts},
    )
