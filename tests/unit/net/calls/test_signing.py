"""Signatures of requests, checked against an independent implementation of RFC 9421."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from http_message_signatures import (
    HTTPMessageSigner,
    HTTPMessageVerifier,
    HTTPSignatureKeyResolver,
    algorithms,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import vectors
from xsc.base.errors import SignatureInvalid
from xsc.base.ids import from_text, to_text
from xsc.identity.keys import KeyPair, network_id
from xsc.net.calls.signing import (
    DIGEST,
    INPUT,
    NETWORK,
    SIGNATURE,
    TO,
    claimed_caller,
    digest_of,
    sign_request,
    verify_request,
)

PATH = "/peer/v1/storage.get"
COVERED = ("@method", "@path", "@query", DIGEST, NETWORK, TO)
ALICE, BOB, CAROL = (KeyPair(bytes([seed]) * 32) for seed in (1, 2, 3))
HOME = network_id("test")
CREATED_MS = 1_700_000_000_123


@dataclass
class Message:
    method: str = "POST"
    url: str = f"http://127.0.0.1:7412{PATH}"
    headers: dict[str, str] = field(default_factory=dict)


class Keys(HTTPSignatureKeyResolver):
    def resolve_private_key(self, key_id: str) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(ALICE.seed)

    def resolve_public_key(self, key_id: str) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(from_text(key_id))


def signed(head: bytes = b"head", created_ms: int = CREATED_MS) -> dict[str, str]:
    return sign_request(
        ALICE,
        network=HOME,
        to=BOB.node_id,
        method="POST",
        path=PATH,
        head=head,
        created_ms=created_ms,
        entropy=bytes(10),
    )


def verified(headers, *, network=HOME, to=BOB.node_id, method="POST", path=PATH):
    return verify_request(headers, network=network, to=to, method=method, path=path)


def test_who_signed_is_who_is_found():
    caller = verified(signed())
    assert caller.node_id == ALICE.node_id
    assert caller.created_ms == CREATED_MS
    assert caller.nonce == CREATED_MS.to_bytes(6, "big") + bytes(10)
    assert caller.digest == digest_of(b"head")


@pytest.mark.parametrize("case", vectors("signing")["requests"])
def test_vectors_of_the_library(case):
    headers = sign_request(
        KeyPair(bytes.fromhex(case["seed"])),
        network=network_id(case["network_name"]),
        to=KeyPair(bytes.fromhex(case["to_seed"])).node_id,
        method=case["method"],
        path=case["path"],
        head=bytes.fromhex(case["head"]),
        created_ms=case["created_ms"],
        entropy=bytes.fromhex(case["entropy"]),
    )
    assert headers == case["headers"]


def test_the_library_verifies_what_we_sign():
    now = dt.datetime.now(dt.UTC)
    message = Message(headers=signed(created_ms=int(now.timestamp() * 1000)))
    verifier = HTTPMessageVerifier(signature_algorithm=algorithms.ED25519, key_resolver=Keys())
    (result,) = verifier.verify(message, max_age=dt.timedelta(minutes=1))
    assert result.parameters["keyid"] == to_text(ALICE.node_id)
    assert [component.strip('"') for component in result.covered_components][:6] == list(COVERED)


def test_we_verify_what_the_library_signs():
    message = Message(
        headers={
            DIGEST: digest_of(b"head"),
            NETWORK: to_text(HOME),
            TO: to_text(BOB.node_id),
        }
    )
    HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=Keys()).sign(
        message,
        key_id=to_text(ALICE.node_id),
        created=dt.datetime.fromtimestamp(CREATED_MS // 1000, dt.UTC),
        nonce=(CREATED_MS.to_bytes(6, "big") + bytes(10)).hex(),
        label="xsc",
        covered_component_ids=COVERED,
    )
    headers = {name.lower(): value for name, value in message.headers.items()}
    assert verified(headers) == verified(signed())


@pytest.mark.parametrize(
    "other",
    [
        {"network": network_id("elsewhere")},
        {"to": CAROL.node_id},
        {"method": "PUT"},
        {"path": "/peer/v1/storage.put"},
        {"path": PATH + "?"},
        {"path": PATH + "?x=1"},
    ],
)
def test_a_request_for_another_place_is_refused(other):
    with pytest.raises(SignatureInvalid):
        verified(signed(), **other)


def test_every_field_is_needed():
    for name in signed():
        headers = signed()
        del headers[name]
        with pytest.raises(SignatureInvalid):
            verified(headers)


def test_every_flipped_bit_is_refused():
    headers = signed()
    for name, value in headers.items():
        for place in range(len(value)):
            for bit in range(7):
                other = value[:place] + chr(ord(value[place]) ^ 1 << bit) + value[place + 1 :]
                with pytest.raises(SignatureInvalid):
                    verified({**headers, name: other})


def test_fields_of_two_requests_do_not_mix():
    one, two = signed(b"one"), signed(b"two", CREATED_MS + 1)
    for name in (DIGEST, INPUT, SIGNATURE):
        with pytest.raises(SignatureInvalid):
            verified({**one, name: two[name]})


def test_a_second_signature_beside_the_first_is_refused():
    headers = signed()
    for name in (INPUT, SIGNATURE):
        doubled = f"{headers[name]}, {headers[name].replace('xsc=', 'b=', 1)}"
        with pytest.raises(SignatureInvalid):
            verified({**headers, name: doubled})


def test_who_is_claimed_is_read_without_checking():
    headers = signed()
    headers[SIGNATURE] = "xsc=:forged:"
    assert claimed_caller(headers) == ALICE.node_id
    assert claimed_caller({}) is None
    assert claimed_caller({INPUT: headers[INPUT].replace("created=", "expires=")}) is None


@given(st.dictionaries(st.sampled_from([DIGEST, INPUT, NETWORK, SIGNATURE, TO]), st.text()))
def test_no_text_does_anything_but_be_refused(headers):
    with pytest.raises(SignatureInvalid):
        verified(headers)
    assert claimed_caller(headers) is None
