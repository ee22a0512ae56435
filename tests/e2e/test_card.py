"""The card's law: nobody types a market command, and recognition decides who has scarce room.

What came of it is checked from what the nodes published and signed alone.
"""

from __future__ import annotations

import itertools
import os

import pytest

from tests.e2e.conftest import CONFIG, Net, call, wait_for
from tests.independent.market import faults, lease_of, opened
from xsc.base.ids import from_text as bytes_of
from xsc.base.limits import MIB, SLOT_STEP_BYTES

WHOLE = 2 * SLOT_STEP_BYTES
PROVIDER, HOLDER, STRANGER, FRIEND, OTHER = range(5)
CAPACITIES = (WHOLE + 64 * 1024, 1, 1, 1, 16 * SLOT_STEP_BYTES)
ASKED, PAID = (1, 1, 1, 1, 3), (4, 4, 2, 2, 4)
"""In credits a GiB and hour: what the other one asks is too much for friend and stranger."""


@pytest.fixture
def net(tmp_path):
    """Nodes whose leases last 40 s; only two have room for anything."""
    own = Net(
        tmp_path / "net",
        XSC_STORAGE_LEASE_TERM="40s",
        XSC_SETTLE_INTERVAL="3s",
        XSC_REPAIR_INTERVAL="2s",
        XSC_REPAIR_GRACE="4s",
        XSC_MOVED_KEPT="1s",
        XSC_KEEP_VERSIONS="1000",
    )
    for index, capacity in enumerate(CAPACITIES):
        home = own[index].home
        home.mkdir(mode=0o700, parents=True)
        config = CONFIG.format(home.name) + f'storage_capacity = "{capacity}B"\n'
        config += f"storage_price_gib_hour = {ASKED[index]}_000_000\n"
        config += f"storage_price_max_gib_hour = {PAID[index]}_000_000\n"
        (home / "config.toml").write_text(config)
    yield own
    own.down()


def leases(member, peer, **fields) -> list[dict]:
    """Return the leases that a node took of another, with those fields."""
    return [
        lease
        for lease in signed(member)
        if (lease["role"], lease["peer"]) == ("customer", peer) and fields.items() <= lease.items()
    ]


def signed(member) -> list[dict]:
    """Return a node's leases of storage; each of their terms is written down, once it is seen."""
    rows = member("market leases --json").json["leases"]
    rows = [row for row in rows if row["kind"] == "storage"]
    for row in rows:
        path = member.home.parent / f"lease-{row['lease_id']}-{row['start_ms']}"
        if not path.exists():
            written(member, ["market", "lease", row["lease_id"]], path)
    return rows


def cleared(member, peer) -> int:
    """Return the level that it has there under leases that clearings granted."""
    return sum(row["quantity"] for row in leases(member, peer, origin="cleared", state="open"))


def needs_seen(member) -> set[str]:
    """Return the nodes whose needs another one knows."""
    rows = member("market slots --json").json["slots"]
    return {row["node"] for row in rows if (row["role"], row["kind"]) == ("need", "storage")}


def space_of(member) -> list[tuple[str, bytes]]:
    """Return paths and values of the market in the space of a node: the replaced ones, too."""
    found = []
    for prefix in ("allocation", "market"):
        for row in member(f"space ls {prefix} --json").json["records"]:
            path = row["path"]
            found.append((path, member(["space", "get", path]).out))
            if path.startswith("allocation/"):
                for old in member(f"space versions {path} --json").json["records"]:
                    words = ["space", "get", "--sequence", old["sequence"], path]
                    found.append((path, member(words).out))
    return found


def written(member, words, path) -> bytes | None:
    """Return a signed record that a node writes to a file, verified; None where it has none."""
    done = member([*words, "-o", path])
    if done.code:
        done.fails(2, "not_found")
        return None
    assert call(["verify", path]).line
    return path.read_bytes()


def test_room_goes_to_a_friend_before_a_stranger_and_the_stranger_s_bytes_move(net, tmp_path):
    net.up(4)
    provider, holder, stranger, friend = (net[index] for index in range(4))
    ids = [net[index].id for index in range(4)]
    assert provider(f"peer recognise {ids[FRIEND]} 50%").code == 0
    assert friend(f"peer recognise {ids[PROVIDER]} 50%").code == 0
    # What is one's own and what a stranger stores fill the provider.
    filler = provider.put(os.urandom(80 * MIB), "--survive 0node")
    content = os.urandom(MIB)
    kept = holder.put(content, "--survive 0node")
    assert leases(holder, ids[PROVIDER], origin="now", state="open")
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, 5 * SLOT_STEP_BYTES)
    for member, node in ((stranger, ids[STRANGER]), (friend, ids[FRIEND])):
        member(["store", "put", large, "--survive", "0node"]).fails(5, "no_offers")
        wait_for(lambda node=node: node in needs_seen(provider))
    assert cleared(friend, ids[PROVIDER]) == 0
    # Room falls free: the friend asked last, and gets it.
    assert provider("store rm -", stdin=filler.encode()).code == 0
    wait_for(lambda: cleared(friend, ids[PROVIDER]) == SLOT_STEP_BYTES)
    # At half-life the stranger's lease is not renewed. It ends, and its bytes move to a new host.
    wait_for(lambda: "granted its room to others" in holder("store ls --ending").text)
    wait_for(lambda: not leases(holder, ids[PROVIDER], state="open"))
    net.up(5)
    other = net[OTHER].id
    wait_for(lambda: not sum(row["held"] for row in leases(holder, ids[PROVIDER])))
    assert sum(row["held"] for row in leases(holder, other)) > MIB
    assert holder.get(kept) == content
    wait_for(lambda: cleared(friend, ids[PROVIDER]) == WHOLE)
    assert cleared(stranger, ids[PROVIDER]) == 0
    check(net, tmp_path)


def account(member, peer, folder) -> tuple | None:
    """Return the count and voucher of a pair; None where a newer voucher came in between."""
    words = ["market", "account", peer]
    before = written(member, words, folder / "voucher")
    count = written(member, [*words, "--count"], folder / "count")
    voucher = written(member, words, folder / "voucher")
    return (count, voucher) if voucher == before else None


def check(net, folder) -> None:
    """Have the independent checker look at all that was published and signed."""
    members = [net[index] for index in range(len(CAPACITIES))]
    for member in members:  # What is held is paid once it is proven.
        assert member("ledger settle").code == 0

    def look():
        """Return all of it, once a count that was made while a lease was asked for is replaced."""
        accounts = []
        for member in members:
            for peer in {row["peer"] for row in signed(member) if row["role"] == "customer"}:
                pair = wait_for(lambda member=member, peer=peer: account(member, peer, folder))
                accounts += [pair] if all(pair) else []
        spaces = {bytes_of(member.id): space_of(member) for member in members}
        said = [path.read_bytes() for path in sorted(net.folder.glob("lease-*"))]
        found = list(faults(spaces, said, accounts))
        return (
            None if found == ["the count leaves a lease out"] else (found, spaces, said, accounts)
        )

    found, spaces, said, accounts = wait_for(look)
    assert found == []
    # It would have said so: without what was published, what was signed does not follow.
    for path in ("allocation/commitment", "allocation/recognition", "market/clearings/"):
        less = {
            node: [row for row in rows if not row[0].startswith(path)]
            for node, rows in spaces.items()
        }
        assert faults(less, said, accounts), path
    # What came after the hour's challenge is paid in the next one (P9): how many accounts have a
    # voucher by now depends on the minute. The terms of all leases are looked at anyway.
    assert len(said) >= 2
    counts = [opened(count, "lease_count")[1] for count, _ in accounts]
    for lease_id in {line["lease_id"] for count in counts for line in count["leases"]}:
        # Of one that was renewed, no term may stand for another.
        rest = [raw for raw in said if lease_of(raw).id != lease_id]
        assert faults(spaces, rest, accounts)
    for (first, one), (second, other) in itertools.pairwise(accounts):
        assert faults(spaces, said, [(first, other), (second, one)])
