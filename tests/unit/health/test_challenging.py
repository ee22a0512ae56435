"""Challenges between nodes with the shard stores and the catalogue of storage."""

import random
from dataclasses import dataclass

import pytest

from tests.unit.storage.world import NETWORK, Answer, World, content, finished, put
from xsc.base.clock import InlineExecutor, SeededEntropy
from xsc.base.encoding import decode, encode
from xsc.base.errors import (
    ClockSkewed,
    NotAllowed,
    ObjectUnknown,
    PeerSilent,
    PeerUnknown,
    RateLimited,
    RecordInvalid,
    XscError,
)
from xsc.base.limits import EPOCH_MS, MIB
from xsc.base.log import SilentLog
from xsc.base.merkle import Part
from xsc.health import challenge as rules
from xsc.health.challenge import CONTAINED_MS, EVERYTHING, SLOT_MS, Round
from xsc.health.challenging import CHALLENGE, PROVE, ROOT, ChallengeService
from xsc.identity.context import Context
from xsc.identity.envelope import open_signed, sign
from xsc.storage.object.capability import parse_verify
from xsc.storage.shardstore import bodies as formats
from xsc.terms.possession import (
    LEAVES_ASKED,
    Extent,
    Holding,
    Possession,
    Proven,
    extent_name,
)

PROBE = "health.ping"


@dataclass
class Probe:
    available: bool


class Prover:
    """The challenges of one node, and how it behaves to others."""

    def __init__(self, net, host):
        self.net, self.host, self.id = net, host, host.id
        self.silent_in = set()
        """Methods that it does not answer."""
        self.refuses = None
        self.forge = lambda method, answer: answer
        self.reports, self.served_by = [], []
        self.cut_off = False
        self.found = set()
        """Peers of which others bring pongs."""
        self.asked = []
        self.heard = []
        self.paid = []
        """What challenges came to, for who pays."""
        self.start()

    def start(self):
        entropy = SeededEntropy(self.id)
        clock, log = self.host.world.clock, SilentLog()
        ports = (clock, entropy, InlineExecutor(), self, log)
        context = Context(self.host.key, NETWORK, *ports, self.host.state, None)
        stored = self.host.service
        self.service = ChallengeService(
            context, self, stored.possessions, leaf=stored.leaf, payments=self
        )

    # Payments

    def challenged(self, role, peer, proof):
        self.paid.append((role, peer, proof))

    def certified(self, customer, raw, leaves):
        self.paid.append(("custodian", customer, raw))

    # Probes

    def peers(self):
        return self.host.peers()

    def is_up(self, peer):
        return self.host.is_up(peer)

    async def probe(self, peer):
        return Probe(self.net[peer].host.up and PROBE not in self.net[peer].silent_in)

    def is_found(self, peer):
        return peer in self.found

    def is_cut_off(self, peer):
        return self.cut_off

    def served(self, peer, dimension):
        assert dimension == "integrity"
        self.served_by.append(peer)

    def silent(self, peer):
        self.reports.append((peer, "silent", False))

    def report(self, peer, dimension, what, *, evidence=b""):
        assert dimension == "integrity"
        self.reports.append((peer, what, bool(evidence)))

    # Caller

    async def call(self, peer, method, header, parts=(), *, timeout_ms=None):
        other = self.net[peer]
        self.asked.append((peer, method))
        if not other.host.up or method in other.silent_in:
            raise PeerSilent("no answer in time")
        if other.refuses is not None:
            raise other.refuses
        other.heard.append((method, header, parts))
        carried = [Part(memoryview(bytes(part.data)), part.root) for part in parts]
        handler = other.service.handlers()[method]
        answer, bodies = await handler(self.id, decode(encode(header), size_max=2**20), carried)
        reply = Answer(decode(encode(answer)), [memoryview(bytes(body)) for body in bodies])
        return other.forge(method, reply)


class Net:
    def __init__(self, world):
        self.world = world
        self.provers = {host.id: Prover(self, host) for host in world.hosts}

    def __getitem__(self, which):
        return self.provers[which if isinstance(which, bytes) else self.world[which].id]

    @property
    def others(self):
        return [host.id for host in self.world.hosts[1:]]

    async def ask(self, number=0, hosts=None):
        """Return what came of challenging all others, by host."""
        done = await finished(
            self.world, self[number].service.challenge(self.others if hosts is None else hosts)
        )
        return {proved.host: proved for proved in done}

    def later(self, duration_ms=EPOCH_MS):
        self.world.clock.advance_to(self.world.clock.now_ms() + duration_ms)

    def row(self, host, number=0):
        return self[number].service.rows[host][self.world[number].id]


SIZES = (100, 5_000, 300_000, 4 * MIB + 70_000)


@pytest.fixture
async def net():
    """Seven nodes; node 0 has stored objects of each kind at the other six."""
    world = await World(7).start()
    made = Net(world)
    world[0].node.writer.capacity_bytes = 0
    for number, size in enumerate(SIZES):
        await finished(world, put(world[0], content(size, number), name=f"object {number}"))
    return made


def lose(host, every=lambda key: True):
    """Remove bodies from the disk of a host behind its back; return how many."""
    gone = []
    for key, raw in host.bodies.scan(formats.BODIES, b"c"):
        if every(formats.decode_body(raw).index_key):
            gone.append((key, None))
    host.bodies.write(gone, sync=True)
    return len(gone)


async def test_honest_hosts_prove_what_they_hold_and_it_is_kept_on_the_disk(net):
    done = await net.ask()
    assert {host: proved.outcome for host, proved in done.items()} == dict.fromkeys(
        net.others, "ok"
    )
    row = net.row(net.others[0])
    assert (row.outcome, row.ok_ms, row.whole_ms) == ("ok", row.at_ms, row.at_ms)
    net[0].start()
    assert net.row(net.others[0]) == row
    net[0].service.forget(net.others[0])
    assert net.others[0] not in net[0].service.rows
    kept = [key for key, _ in net.world[0].state.scan(ROOT, ROOT + b"\xff")]
    assert len(kept) == len(net.others) - 1


async def test_manifests_and_inline_objects_are_drawn_too(net):
    drawn = set()
    for _ in range(60):
        net.later()
        await net.ask(hosts=net.others[:1])
    for method, header, parts in net[1].heard:
        if method == PROVE:
            drawn |= {root[2] is None for root in header["roots"]}
            assert len(header["roots"]) == LEAVES_ASKED
            assert len(parts) >= 2
    assert drawn == {True, False}


async def test_each_host_is_challenged_once_an_interval(net):
    service = net[0].service
    for _ in range(3):
        begun = net.world.clock.now_ms() // EPOCH_MS
        net[0].asked.clear()
        while net.world.clock.now_ms() // EPOCH_MS == begun:
            await finished(net.world, service.round())
            net.later(SLOT_MS)
        begins = [peer for peer, method in net[0].asked if method == CHALLENGE]
        assert sorted(begins) == sorted(net.others)


async def test_who_is_down_is_not_asked_and_has_no_outcome(net):
    net.world[1].up = False
    net.later()
    for _ in range(rules.SLOTS_AN_EPOCH):
        net.later(SLOT_MS)
        await finished(net.world, net[0].service.round())
    assert net.world[1].id not in net[0].service.rows


async def test_what_a_host_has_lost_is_missing_and_repaired_elsewhere():
    world = await World(8).start()
    net = Net(world)
    world[0].node.writer.capacity_bytes = 0
    done = await finished(world, put(world[0], content(300_000), name="object"))
    host = world.by_id[done.placement.columns[2]]
    assert lose(host) == 2
    proved = (await net.ask())[host.id]
    assert proved.outcome == "missing"
    assert net.row(host.id).outcome == "missing"
    assert net[0].reports == [(host.id, "missing", False)], "an admission is no bad proof"
    entry = world[0].service.catalogue.entry(parse_verify(done.capability).manifest_hash)
    assert entry is not None
    await finished(world, world[0].service.repair(done.capability))
    ref = parse_verify(done.capability).manifest_hash
    columns = world[0].service.catalogue.entry(ref).placement.columns
    assert host.id not in columns


async def test_a_host_that_says_it_has_everything_and_does_not_is_left_too():
    """Its stat is what it ought to be, its leaves are not."""
    world = await World(8).start()
    net = Net(world)
    world[0].node.writer.capacity_bytes = 0
    done = await finished(world, put(world[0], content(300_000), name="object"))
    host = world.by_id[done.placement.columns[2]]

    def forge(method, answer):
        if method != PROVE:
            return answer
        parts = [memoryview(bytes(len(part))) for part in answer.parts]
        said = open_signed(answer.header["said"], Possession, network=NETWORK).record
        paths = [tuple(path) for path in answer.header["paths"]]
        proofs = [rules.LeafProof(bytes(d), p) for d, p in zip(parts, paths, strict=True)]
        wrong = said.model_copy(update={"leaves": rules.leaves_id(proofs)})
        raw = sign(wrong, host.key, NETWORK).raw
        return Answer(answer.header | {"said": raw}, parts)

    net[host.id].forge = forge
    assert (await net.ask())[host.id].outcome == "bad_proof"
    assert net[0].reports == [(host.id, "bad_proof", True)]
    await finished(world, world[0].service.repair(done.capability))
    ref = parse_verify(done.capability).manifest_hash
    assert host.id not in world[0].service.catalogue.entry(ref).placement.columns


async def test_what_was_moved_or_deleted_meanwhile_is_the_provers_fault(net):
    world, host = net.world, net.world[1]
    removed = []

    def forge(method, answer):
        if method == CHALLENGE:
            removed.append(lose(host))
            for key, _ in list(world[0].state.scan(b"storage/object/", b"storage/object0")):
                world[0].state.write([(key, None)], sync=True)
        return answer

    net[1].forge = forge
    assert (await net.ask(hosts=[host.id]))[host.id].outcome == "prober_void"
    assert net.row(host.id).ok_ms is None


async def test_silence_is_a_timeout_asked_again_the_same_until_it_is_missing(net):
    host = net.others[0]
    net[1].silent_in = {PROVE}
    assert (await net.ask(hosts=[host]))[host].outcome == "timeout"
    first = net.row(host).again
    assert first
    for _ in range(CONTAINED_MS // EPOCH_MS - 1):
        net.later()
        assert (await net.ask(hosts=[host]))[host].outcome == "timeout"
        assert net.row(host).again == first
    net[0].start()
    net[1].start()  # Both were started anew meanwhile.
    net.later()
    assert (await net.ask(hosts=[host]))[host].outcome == "missing"
    assert net.row(host).again == b""
    refs = {ref for ref, _ in net.world[0].service.catalogue.entries()}
    assert set(net.world[0].service.repairer.surveyor.unreadable) == refs


@pytest.mark.parametrize("cut_off", [False, True])
async def test_who_has_seen_a_draw_gets_no_other_by_missing_a_ping(net, cut_off):
    """A host that had lost a tenth answered good draws, and was away for the others."""
    host = net.others[0]
    net[1].silent_in = {PROVE, PROBE}
    net[0].cut_off = cut_off
    outcome = "prober_void" if cut_off else "unreachable"
    assert (await net.ask(hosts=[host]))[host].outcome == outcome
    drawn = net.row(host).again
    assert drawn
    net[0].cut_off = False
    for _ in range(CONTAINED_MS // EPOCH_MS + cut_off):
        net.later()
        assert net.row(host).again == drawn
        outcome = (await net.ask(hosts=[host]))[host].outcome
    assert outcome == "missing"


async def test_who_answers_what_timed_out_is_ok(net):
    host = net.others[0]
    net[1].silent_in = {PROVE}
    await net.ask(hosts=[host])
    asked = net.row(host).again
    net[1].silent_in = set()
    net[1].start()
    net.later(5 * EPOCH_MS)
    net[1].heard.clear()
    assert (await net.ask(hosts=[host]))[host].outcome == "ok"
    assert net.row(host).again == b""
    (heard,) = [header for method, header, _ in net[1].heard if method == PROVE]
    again = rules.Reveal.from_bytes(asked)
    assert (heard["nonce"], heard["epoch"]) == (again.nonce, again.epoch)


async def test_a_whole_shard_that_comes_too_late_is_a_timeout(net):
    """A host that fetches from another what it must have has no time for a whole shard."""
    world, host = net.world, net.world[1]
    host.delay = lambda method: 20_000 if method in {"storage.get", "storage.find"} else 0
    for hour in range(CONTAINED_MS // EPOCH_MS + 1):
        outcome = (await net.ask(hosts=[host.id]))[host.id].outcome
        assert outcome == ("timeout" if hour < CONTAINED_MS // EPOCH_MS else "missing"), hour
        net.later()
    assert len(world[0].service.repairer.surveyor.unreadable) <= 1, "one is lost, and not all"


async def test_refusing_what_exceeds_is_no_miss_and_refusing_all_is_one(net):
    world, host = net.world, net.others[0]
    await net.ask(hosts=[host])
    await finished(world, put(world[0], content(300_000, 9), name="more"))
    net[0].start()  # What it asked in this hour it does not know any more.
    assert (await net.ask(hosts=[host]))[host].outcome == "prober_void"
    assert net.row(host).silences == 0
    net[1].refuses = RateLimited("so many and no more")
    for hour in range(CONTAINED_MS // EPOCH_MS + 1):
        net.later()
        outcome = (await net.ask(hosts=[host]))[host].outcome
        assert outcome == ("timeout" if hour < CONTAINED_MS // EPOCH_MS else "missing")


async def test_silence_to_everything_but_probes_becomes_missing(net):
    host = net.others[0]
    net[1].silent_in = {CHALLENGE, PROVE}
    outcomes = []
    for _ in range(CONTAINED_MS // EPOCH_MS + 1):
        outcomes.append((await net.ask(hosts=[host]))[host].outcome)
        net.later()
    assert outcomes == ["timeout"] * (len(outcomes) - 1) + ["missing"]


async def test_silence_that_counts_as_missing_is_one_observation(net):
    host = net.others[0]
    net[1].silent_in = {PROVE}
    while (await net.ask(hosts=[host]))[host].outcome != "missing":
        net.later()
    assert net[0].reports == [(host, "silent", False)]
    assert host not in net[0].served_by
    net[1].silent_in = set()
    net.later()
    await net.ask(hosts=[host])
    assert host in net[0].served_by


async def test_silence_to_this_node_alone_becomes_missing(net):
    """A host that others find, and that its customer never hears, was kept for good."""
    host = net.others[0]
    net.world[1].up = False
    net[0].found = {host}
    outcomes = []
    for _ in range(CONTAINED_MS // EPOCH_MS + 1):
        outcomes.append((await net.ask(hosts=[host]))[host].outcome)
        net.later()
    assert outcomes == ["timeout"] * (len(outcomes) - 1) + ["missing"]
    net[0].cut_off = True
    assert (await net.ask(hosts=[host]))[host].outcome == "prober_void"


async def test_a_loss_that_is_found_twice_is_of_all_that_lies_there():
    """To admit four leaves an hour was cheaper than to be silent."""
    world = await World(8).start()
    net, asked = Net(world), []
    world[0].node.writer.capacity_bytes = 0
    done = await finished(world, put(world[0], content(300_000), name="object"))
    host = world.by_id[done.placement.columns[2]]
    possessions = world[0].service.possessions
    lost = possessions.lost

    async def noted(at, customer, names):
        asked.append(names)
        return await lost(at, customer, names)

    possessions.lost = noted
    assert lose(host) == 2
    for _ in range(2):
        assert (await net.ask())[host.id].outcome == "missing"
        net.later()
    first, second = asked
    assert first
    assert second is None


async def test_whose_own_line_is_cut_notes_no_silence(net):
    host = net.others[0]
    net[1].silent_in = {CHALLENGE, PROBE}
    net[0].cut_off = True
    assert (await net.ask(hosts=[host]))[host].outcome == "prober_void"
    assert net.row(host).silences == 0
    net[0].cut_off = False
    assert (await net.ask(hosts=[host]))[host].outcome == "unreachable"
    assert net.row(host).silences == 1


async def test_who_is_down_is_asked_by_hand_in_vain_and_nothing_is_noted(net):
    net.world[1].up = False
    assert (await net.ask(hosts=net.others[:1]))[net.others[0]].outcome == "unreachable"
    assert net.others[0] not in net[0].service.rows


@pytest.mark.parametrize(
    "fault",
    [
        ObjectUnknown("never heard of it"),
        ClockSkewed("your clock is wrong"),
        PeerUnknown("who are you"),
        NotAllowed("no"),
        RecordInvalid("that does not follow"),
    ],
)
async def test_nothing_that_a_host_says_makes_a_challenge_void(net, fault):
    host = net.others[0]
    net[1].refuses = fault
    for hour in range(CONTAINED_MS // EPOCH_MS + 1):
        outcome = (await net.ask(hosts=[host]))[host].outcome
        assert outcome == ("timeout" if hour < CONTAINED_MS // EPOCH_MS else "missing")
        net.later()


async def test_no_changed_byte_of_an_answer_is_ok(net):
    draw, host = random.Random(7), net.others[0]
    for number in range(150):
        changed = []

        def forge(method, answer, number=number, changed=changed):
            if method != PROVE:
                return answer
            raw = bytearray(encode(answer.header) if number % 3 else bytes(answer.parts[0]))
            raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
            changed.append(1)
            if number % 3 == 0:
                return Answer(answer.header, [memoryview(bytes(raw)), *answer.parts[1:]])
            try:
                header = decode(bytes(raw))
            except XscError:
                raise PeerSilent("the answer is damaged") from None
            return Answer(header if isinstance(header, dict) else {}, answer.parts)

        net[1].forge = forge
        outcome = (await net.ask(hosts=[host]))[host].outcome
        assert changed
        assert outcome in {"timeout", "bad_proof"}, number
        net.later()
        net[0].service.rows.clear()
    assert "bad_proof" not in {row.outcome for row in net[0].service.rows.get(host, {}).values()}


async def test_replayed_answers_and_those_to_others_are_no_answers(net):
    host, kept = net.others[0], []

    def keep(method, answer):
        if method == PROVE:
            kept.append(answer)
        return answer

    net[1].forge = keep
    await net.ask(hosts=[host])
    net[1].forge = lambda method, answer: kept[0] if method == PROVE else answer
    net.later()
    assert (await net.ask(hosts=[host]))[host].outcome == "timeout"
    assert net[0].reports


# The host


def begin(net, number, extents, *, epoch=None, nonce=b"n" * 32, scope=EVERYTHING, customer=None):
    world = net.world
    epoch = world.clock.now_ms() // EPOCH_MS if epoch is None else epoch
    customer = world[number].id if customer is None else customer
    asked = Round(world[1].id, customer, world[number].id, scope, epoch)
    pages = rules.pages_of(extents)
    return asked, pages, rules.index_of(pages), nonce


async def commit(net, asked, index, nonce):
    header = {
        "customer": asked.customer,
        "scope": asked.scope,
        "epoch": asked.epoch,
        "commitment": rules.commitment_of(nonce, index),
        "proven": None,
    }
    answer, _ = await net[1].service.handlers()[CHALLENGE](asked.prober, header, ())
    return answer["nonce"]


async def reveal(net, *, asked, index, nonce, host_nonce, roots, shown):
    header = {
        "customer": asked.customer,
        "scope": asked.scope,
        "epoch": asked.epoch,
        "nonce": nonce,
        "host_nonce": host_nonce,
        "roots": roots,
    }
    parts = [Part(raw, b"") for raw in (index, *shown)]
    return await net[1].service.handlers()[PROVE](asked.prober, header, parts)


async def test_a_host_answers_only_what_follows_from_a_commitment_that_it_took(net):
    world = net.world
    held = await finished(world, world[0].service.possessions.held([world[1].id]))
    holding = held[world[1].id, world[0].id]
    asked, pages, index, nonce = begin(net, 0, holding.extents)
    host_nonce = await commit(net, asked, index, nonce)
    seed = rules.seed_of(asked, nonce, host_nonce, rules.commitment_of(nonce, index))
    shown = [pages[page] for page in rules.pages_drawn(index, seed)]
    roots = [
        [*await holding.root_of(extent, body)]
        for extent, body, _ in rules.leaves_drawn(index, shown, seed)
    ]
    given = {
        "asked": asked,
        "index": index,
        "nonce": nonce,
        "host_nonce": host_nonce,
        "roots": roots,
        "shown": shown,
    }
    _, parts = await reveal(net, **given)
    assert len(parts) == LEAVES_ASKED
    with pytest.raises(RateLimited):
        await commit(net, asked, index, b"m" * 32)
    wrong = [
        {"nonce": b"m" * 32},
        {"host_nonce": b"m" * 32},
        {"asked": asked._replace(epoch=asked.epoch + 1)},
        {"asked": asked._replace(customer=world[2].id)},
        {"asked": asked._replace(prober=world[2].id)},
        {"asked": asked._replace(scope=b"s" * 32)},
        {"roots": roots[:-1]},
        {"roots": roots * 2},
        {"roots": []},
        {"shown": []},
        {"shown": [*shown, *shown]},
        {"shown": [shown[0][:-1]]},
        {"index": index + index},
    ]
    for change in wrong:
        with pytest.raises(RecordInvalid):
            await reveal(net, **given | change)
    net.later(EPOCH_MS * (rules.EPOCHS_KEPT + 1))
    with pytest.raises(RecordInvalid, match="another time"):
        await reveal(net, **given)


async def test_whoever_does_not_know_a_root_learns_nothing_of_it(net):
    """Locate ids, columns and sizes are guessed right, and what is there stays untold."""
    world = net.world
    held = await finished(world, world[0].service.possessions.held([world[1].id]))
    extents = held[world[1].id, world[0].id].extents
    asked, pages, index, nonce = begin(net, 3, extents, customer=world[0].id)
    host_nonce = await commit(net, asked, index, nonce)
    seed = rules.seed_of(asked, nonce, host_nonce, rules.commitment_of(nonce, index))
    shown = [pages[page] for page in rules.pages_drawn(index, seed)]
    count = len(rules.leaves_drawn(index, shown, seed))
    for manifest in (None, b"m" * 32):
        roots = [[0, b"r" * 32, manifest]] * count
        answer, parts = await reveal(
            net,
            asked=asked,
            index=index,
            nonce=nonce,
            host_nonce=host_nonce,
            roots=roots,
            shown=shown,
        )
        said = open_signed(answer["said"], Possession, network=NETWORK).record
        assert set(said.states) == {"missing"}
        assert not parts


async def test_what_is_read_for_a_prober_is_charged_before_it_is_read(net):
    host = net.others[0]
    net.world[1].charged.clear()
    await net.ask(hosts=[host])
    charged = [item for item in net.world[1].charged if item[1] == PROVE]
    assert len(charged) == LEAVES_ASKED
    net.world[1].may_read = False
    net.later()
    assert (await net.ask(hosts=[host]))[host].outcome == "timeout"


# One object, by its verify capability


async def test_any_holder_of_a_verify_capability_has_an_objects_hosts_prove_it(net):
    world = net.world
    rows = [entry for _, entry in world[0].service.catalogue.entries()]
    for entry in rows:
        verify = parse_verify(entry.capability)
        possessions = world[3].service.possessions
        owner, holdings = await finished(
            world, possessions.of_object(verify, entry.placement.columns)
        )
        assert owner == world[0].id
        assert holdings.keys() == set(entry.placement.columns) - {world[3].id}
        epoch = world.clock.now_ms() // EPOCH_MS
        for host, holding in holdings.items():
            asked = Round(host, owner, world[3].id, verify.locate, epoch)
            for _ in range(2):
                proved, _ = await finished(world, net[3].service.prove(asked, holding))
                assert proved.outcome == "ok"
    lose(world[1])
    proved, _ = await finished(
        world, net[3].service.prove(asked._replace(host=world[1].id), holdings[world[1].id])
    )
    assert proved.outcome == "missing"
    assert net[3].service.rows == {}, "only what this node looks after is noted"


async def test_what_ended_is_not_asked_for(net):
    world, host = net.world, net.world[1]
    world[0].denied.add(world[0].lease_id(host.id))
    held = await finished(world, world[0].service.possessions.held([host.id]))
    assert held == {}
    await net.ask()
    assert host.id not in net[0].service.rows


async def test_an_object_that_goes_between_commitment_and_draw_is_void(net):
    async def gone(extent, body):
        return None

    world = net.world
    held = await finished(world, world[0].service.possessions.held([world[1].id]))
    holding = held[world[1].id, world[0].id]
    asked, *_ = begin(net, 0, holding.extents)
    proved, _ = await finished(world, net[0].service.prove(asked, Holding(holding.extents, gone)))
    assert proved.outcome == "prober_void"


async def test_both_sides_hear_what_a_challenge_over_everything_came_to(net):
    host, own = net.others[0], net.world[0].id
    await net.ask(hosts=[host])
    ((role, peer, mine),) = net[0].paid
    ((role_there, peer_there, theirs),) = net[1].paid
    assert (role, peer, role_there, peer_there) == ("customer", host, "provider", own)
    assert mine == theirs
    assert mine.ok is True
    assert lose(net.world[1])
    net.later()
    await net.ask(hosts=[host])
    assert [proof.ok for _, _, proof in net[0].paid] == [True, False]


async def test_a_host_takes_no_record_of_a_proof_that_it_did_not_give(net):
    extent = Extent(extent_name(b"l" * 32, 1), 1, 9, 9)
    asked, _, index, nonce = begin(net, 0, [extent])
    prober = next(host.key for host in net.world.hosts if host.id == asked.prober)
    fields = {"host": asked.host, "customer": asked.customer, "prober": asked.prober}
    proven = Proven(**fields, seed=b"s" * 32, leaves=2**40, at_ms=1)
    header = {
        "customer": asked.customer,
        "scope": asked.scope,
        "epoch": asked.epoch,
        "commitment": rules.commitment_of(nonce, index),
        "proven": sign(proven, prober, NETWORK).raw,
    }
    answer = net[1].service.handlers()[CHALLENGE]
    await answer(asked.prober, header, ())
    assert net[1].paid == []
    with pytest.raises(XscError):
        await answer(net.others[2], header, ())
