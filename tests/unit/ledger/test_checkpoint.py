"""A checkpoint is what its signatures say, and only one may follow on another with a quorum."""

import base64
import hashlib
import itertools
import json
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.encoding import encode
from xsc.base.errors import (
    LedgerDamaged,
    ProofInvalid,
    RecordInvalid,
    SignatureInvalid,
    TooLarge,
    XscError,
)
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair, network_id
from xsc.ledger import tree
from xsc.ledger.checkpoint import (
    CHECKPOINT_BYTES_MAX,
    Checkpoint,
    draw,
    is_followed,
    listed,
    open_checkpoint,
    open_stored,
    quorum,
    why_not_signed,
)
from xsc.ledger.entry import GENESIS, Half
from xsc.ledger.fork import FORK_BYTES_MAX, fork_bytes, open_fork
from xsc.node.offline.verify import verify_file

NETWORK = network_id("test")
AUTHOR = KeyPair(b"a" * 32)
PEERS = [KeyPair(bytes([number]) * 32) for number in range(1, 13)]
NAMED = PEERS[:7]
VECTORS = Path(__file__).parents[2] / "vectors"


def top(low, high):
    return tree.root_of([tree.leaf_hash(bytes([at]) * 32) for at in range(low, high)])


def checkpoint(size=5, named=NAMED, *, by=(), root=None, **changes):
    nodes = listed([key.node_id for key in named])
    said = Checkpoint(NETWORK, AUTHOR.node_id, 0, size, root or top(0, size), nodes)
    said = replace(said, **changes).signed(AUTHOR)
    for key in by:
        said = said.signed(key, 1_764_000_000)
    return said


def test_a_note_is_what_c2sp_says():
    vector = json.loads((VECTORS / "checkpoint.json").read_text())
    keys = [KeyPair(bytes.fromhex(seed)) for seed in vector["seeds"]]
    said = Checkpoint(
        NETWORK,
        keys[0].node_id,
        vector["first_seq"],
        vector["size"],
        bytes.fromhex(vector["root"]),
        listed([key.node_id for key in keys[1:]]),
    ).signed(keys[0])
    said = said.signed(keys[1], vector["time_s"])
    assert said.raw.decode() == vector["note"]
    assert open_checkpoint(said.raw, network=NETWORK).raw == said.raw
    # Checked once more by nothing but the standard: signed-note and tlog-cosignature.
    text, lines = vector["note"].split("\n\n")
    for line, key, mark in zip(lines.splitlines(), keys, (1, 4), strict=False):
        _, name, signature = line.split(" ")
        raw = base64.b64decode(signature)
        named = name.encode() + b"\n" + bytes([mark]) + key.node_id
        assert raw[:4] == hashlib.sha256(named).digest()[:4]
        message = f"{text}\n"
        if mark == 4:
            time_s = int.from_bytes(raw[4:12], "big")
            message = f"cosignature/v1\ntime {time_s}\n{message}"
        Ed25519PublicKey.from_public_bytes(key.node_id).verify(raw[-64:], message.encode())


def test_every_flipped_bit_and_every_cut_of_a_checkpoint_is_found():
    raw = checkpoint(by=PEERS[:2]).raw
    assert open_checkpoint(raw, network=None).raw == raw
    for place, bit in itertools.product(range(len(raw)), range(8)):
        changed = raw[:place] + bytes([raw[place] ^ 1 << bit]) + raw[place + 1 :]
        with pytest.raises((RecordInvalid, SignatureInvalid)):
            open_checkpoint(changed, network=NETWORK)
    for end in range(len(raw)):
        try:
            # A note with a signature less is one, too.
            assert open_checkpoint(raw[:end], network=NETWORK).text == checkpoint().text
        except (RecordInvalid, SignatureInvalid):
            continue


def test_what_is_no_checkpoint_is_refused():
    said = checkpoint()
    with pytest.raises(RecordInvalid, match="another network"):
        open_checkpoint(said.raw, network=network_id("other"))
    with pytest.raises(TooLarge):
        open_checkpoint(said.raw + bytes(CHECKPOINT_BYTES_MAX), network=None)
    with pytest.raises(SignatureInvalid, match="author has not signed"):
        open_checkpoint(replace(said, signatures={}).signed(PEERS[0], 1).raw, network=None)
    for named in (PEERS[:3], PEERS[:5], [*PEERS[:3], PEERS[0]], PEERS[:10]):
        with pytest.raises(RecordInvalid):
            open_checkpoint(checkpoint(named=named).raw, network=None)


def test_so_many_co_sign_that_two_quorums_share_an_honest_one():
    for count in (4, 7):
        faulty, most = (count - 1) // 3, 2 * quorum(count) - count
        assert most > faulty
    nodes = [key.node_id for key in PEERS]
    assert [len(draw(AUTHOR.node_id, nodes[:count])) for count in range(13)] == [
        *[0] * 4,
        *[4] * 3,
        *[7] * 6,
    ]
    for gone in nodes:
        before = draw(AUTHOR.node_id, nodes)
        after = draw(AUTHOR.node_id, [node for node in nodes if node != gone])
        assert len({*before} - {*after}) == (gone in before)


def test_a_co_signer_signs_only_what_continues_the_last_one():
    me = NAMED[0].node_id
    last = checkpoint(5)
    for size in range(5, 12):
        path = tree.prove_consistency(5, size, top)
        assert why_not_signed(last, checkpoint(size), path, me) is None
        assert "not shown" in why_not_signed(last, checkpoint(size, root=bytes(32)), path, me)
        assert "not shown" in why_not_signed(last, checkpoint(size), [*path, me], me)
    for size in range(1, 5):
        assert "had 5" in why_not_signed(last, checkpoint(size), [], me)
    assert "empty" in why_not_signed(None, checkpoint(0), [], me)
    assert why_not_signed(None, checkpoint(), [], me) is None
    assert "other co-signers" in why_not_signed(None, checkpoint(), [], PEERS[8].node_id)


def test_the_list_of_co_signers_changes_only_with_a_quorum_of_the_one_before():
    old, new = PEERS[:7], PEERS[5:12]
    last, path = checkpoint(5, old), tree.prove_consistency(5, 6, top)
    for count in range(8):
        following = checkpoint(6, new, by=old[:count])
        enough = count >= quorum(7)
        for key in new[2:]:  # who was not named before
            reason = why_not_signed(last, following, path, key.node_id)
            assert (reason is None) == enough, count
        published = checkpoint(6, new, by=[*old[:count], *new[2:]])
        assert is_followed(last, published) == enough, "none of the old list is taken for new"
    # The old ones have their word by signing, once: then the list is the new one for them.
    assert why_not_signed(last, checkpoint(6, new), path, old[0].node_id) is None
    later = replace(checkpoint(6, new), former=last.cosigners)
    again = tree.prove_consistency(6, 7, top)
    assert why_not_signed(later, checkpoint(7, new), again, old[0].node_id) is None
    third = checkpoint(7, PEERS[2:9])
    assert why_not_signed(later, third, again, old[2].node_id) is not None
    assert why_not_signed(later, checkpoint(7, old), again, old[0].node_id) is not None


def test_no_two_forked_trees_both_get_a_quorum():
    """Whichever two of seven sign all, and whatever list an author names on its way."""
    trees = {"one": top, "other": lambda low, high: top(low, high)[::-1]}
    for faulty in itertools.combinations(range(4), 1):
        for order in itertools.permutations(["one", "other"]):
            marks, signed = {}, {name: set() for name in trees}
            for name, key in itertools.product(order, range(4)):
                said = checkpoint(6, PEERS[:4], root=trees[name](0, 6))
                mark = marks.get(key)
                path = [] if mark is None else tree.prove_consistency(6, 6, top)
                if key in faulty or why_not_signed(mark, said, path, PEERS[key].node_id) is None:
                    signed[name].add(key)
                    marks.setdefault(key, said)
            assert sum(len(who) >= quorum(4) for who in signed.values()) <= 1


def test_a_published_checkpoint_is_noted_if_enough_have_signed_it():
    whole = checkpoint(5, by=NAMED[:5])
    assert is_followed(None, whole)
    assert not is_followed(None, checkpoint(5, by=NAMED[:4]))
    assert not is_followed(None, checkpoint(5, by=PEERS[5:12])), "only who is named counts"
    assert not is_followed(None, checkpoint(5, named=()))
    assert not is_followed(whole, whole)
    assert is_followed(whole, checkpoint(6, by=NAMED[:5]))
    assert not is_followed(whole, checkpoint(4, by=NAMED[:5]))


def test_more_signatures_than_two_lists_have_are_refused():
    nodes = [KeyPair(bytes([100 + number]) * 32) for number in range(15)]
    assert open_checkpoint(checkpoint(by=nodes[:14]).raw, network=NETWORK)
    with pytest.raises(RecordInvalid, match="more signatures"):
        open_checkpoint(checkpoint(by=nodes).raw, network=NETWORK)
    padded = checkpoint(by=nodes[:14]), checkpoint(by=nodes[:14], root=bytes(32))
    proof = fork_bytes(*(each.bare for each in padded))
    assert len(proof) <= 1_024
    assert open_fork(proof, network=NETWORK).author == AUTHOR.node_id


def test_numbers_that_no_chain_has_are_refused():
    for first_seq, size in ((2**63, 5), (2**63 - 5, 5), (5, 2**63 - 5), (10**18 * 9, 10**18)):
        said = checkpoint(size, root=bytes(32), first_seq=first_seq)
        with pytest.raises(RecordInvalid):
            open_checkpoint(said.raw, network=None)
    last = checkpoint(5, root=bytes(32), first_seq=2**63 - 6)
    assert open_checkpoint(last.raw, network=None) == last


def test_a_list_that_follows_another_names_it_and_needs_both():
    old, new = PEERS[:7], PEERS[7:11]
    said = replace(checkpoint(named=new), former=listed([key.node_id for key in old]))
    said = replace(said, signatures={}).signed(AUTHOR)
    assert open_checkpoint(said.raw, network=NETWORK) == said
    for count in range(8):
        signed = said
        for key in [*new, *old[:count]]:
            signed = signed.signed(key, 1)
        assert signed.is_complete == (count >= quorum(7))
    for key in old:
        said = said.signed(key, 1)
    assert not said.is_complete
    told = verify_file(said.raw)
    assert "0 of 4 co-signers signed, 3 needed, and 7 of 7 former co-signers signed, 5" in told


def test_a_stored_checkpoint_that_is_damaged_is_said_to_be():
    raw = checkpoint().raw
    assert open_stored(raw, NETWORK).raw == raw
    assert open_stored(None, NETWORK) is None
    for damaged in (b"", raw[:-1], encode({"v": 1, "last": raw})):
        with pytest.raises(LedgerDamaged):
            open_stored(damaged, NETWORK)


# Forks


def half(**changes):
    made = Half(
        kind="post",
        credit=AUTHOR.node_id,
        debit=PEERS[0].node_id,
        peer=PEERS[0].node_id,
        seq=7,
        prev=GENESIS,
        amount_micro=5,
        account=b"a" * 32,
        receipt=b"r" * 32,
        created_ms=1,
    )
    return sign(made.model_copy(update=changes), AUTHOR, NETWORK)


def test_two_halves_of_one_number_are_a_fork_and_others_are_not():
    one, other = half(), half(created_ms=2)
    proof = fork_bytes(one.raw, other.raw)
    assert proof == fork_bytes(other.raw, one.raw)
    assert (open_fork(proof, network=NETWORK).author, open_fork(proof, network=None).seq) == (
        AUTHOR.node_id,
        7,
    )
    theirs = sign(
        one.record.model_copy(
            update={"credit": PEERS[1].node_id, "peer": PEERS[0].node_id, "created_ms": 2}
        ),
        PEERS[1],
        NETWORK,
    )
    elsewhere = sign(other.record, AUTHOR, network_id("other"))
    for wrong in (one, half(seq=8), theirs, elsewhere):
        with pytest.raises(ProofInvalid):
            open_fork(fork_bytes(one.raw, wrong.raw), network=None)
    with pytest.raises(ProofInvalid):
        open_fork(proof, network=network_id("other"))
    head, body = proof[:2], proof[2:]
    padded = head + b"\0\0\0\xff\xff" * ((FORK_BYTES_MAX - len(proof)) // 5) + body
    assert open_fork(padded, network=NETWORK) == open_fork(proof, network=NETWORK)
    named = {"v": 1, "records": [one.raw, other.raw]}
    for wrong in (
        proof[:-1],
        proof + b"\0",
        head + b"\0\0\0\xff\xff" + padded[2:],
        *(zlib.compress(encode(named | more)) for more in ({"v": 2}, {"more": 1})),
        zlib.compress(encode(named) + b"\0"),
    ):
        with pytest.raises(ProofInvalid):
            open_fork(wrong, network=NETWORK)


def test_two_roots_over_as_many_entries_are_a_fork_and_others_are_not():
    one = checkpoint(5)
    assert open_fork(fork_bytes(one.raw, checkpoint(5, root=bytes(32)).raw), network=None).seq == 5
    for wrong in (
        one,
        checkpoint(6),
        checkpoint(5, named=PEERS[:4]),
        checkpoint(5, root=bytes(32), first_seq=9),
        half(),
    ):
        with pytest.raises(ProofInvalid):
            open_fork(fork_bytes(one.raw, wrong.raw), network=None)


@given(
    st.data(),
    st.integers(1, 2**63 - 1),
    st.lists(st.binary(min_size=32, max_size=32), min_size=8, max_size=8),
)
def test_every_proof_has_at_most_a_kibibyte_and_no_changed_byte_proves_it(data, number, random):
    """Also of halves that no honest node signs, with all fields that there are."""
    one, other = (
        half(
            seq=number,
            amount_micro=number,
            created_ms=number - place,
            prev=random[place],
            link=random[place + 2],
            account=random[place + 6],
            receipt=random[place],
            peer=PEERS[place].node_id,
            debit=PEERS[place].node_id,
        )
        for place in (0, 1)
    )
    proof = fork_bytes(one.raw, other.raw)
    assert len(proof) <= 1_024
    assert open_fork(proof, network=NETWORK).seq == number
    place = data.draw(st.integers(0, len(proof) - 1))
    changed = (
        proof[:place] + bytes([proof[place] ^ data.draw(st.integers(1, 255))]) + proof[place + 1 :]
    )
    try:
        assert open_fork(changed, network=NETWORK) == open_fork(proof, network=NETWORK)
    except ProofInvalid:
        return


@given(st.binary(max_size=3_000))
def test_any_bytes_are_a_proof_or_one_error(raw):
    with pytest.raises(XscError):
        open_fork(raw, network=None)
    with pytest.raises(XscError):
        open_checkpoint(raw, network=None)


def test_a_small_proof_does_not_unpack_to_much():
    with pytest.raises(ProofInvalid):
        open_fork(zlib.compress(bytes(10**6)), network=None)
