"""Who repairs cannot read, and no capability signs: no such key is taken, made or reachable."""

import ast
from pathlib import Path

from hypothesis import assume, given
from hypothesis import strategies as st

from xsc.storage import repair
from xsc.storage.object.capability import ReadCapability, VerifyCapability
from xsc.storage.repair.maintained_object import MaintainedObject
from xsc.storage.transfer import deep_read, sender

READERS = {"ReadCapability", "content_key", "open_sealed", "parse_read", "ObjectReader"}


def names(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name


def test_no_module_of_repair_names_what_reads():
    paths = [*Path(repair.__file__).parent.glob("*.py")]
    paths += [Path(module.__file__) for module in (sender, deep_read)]
    assert len(paths) > 10
    for path in paths:
        assert not READERS & set(names(path)), path.name


def test_a_maintained_object_holds_a_verify_capability():
    assert MaintainedObject.__annotations__["capability"] == "VerifyCapability"


def reachable(value, seen):
    """Every byte string that can be had from a value by its fields and properties."""
    for name in dir(type(value)):
        if name.startswith("_") or name in seen:
            continue
        found = getattr(value, name)
        assert not hasattr(found, "sign"), "no capability gives a key that signs"
        if isinstance(found, bytes):
            seen[name] = found
    return seen


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_no_key_that_follows_from_a_verify_capability_is_the_content_key(secret, manifest_hash):
    assume(secret != manifest_hash)
    read = ReadCapability(secret, manifest_hash)
    verify = VerifyCapability(read.verify.verify_key, manifest_hash)
    assert verify == read.verify
    keys = reachable(verify, {})
    assert "content_key" in reachable(read, {})
    assert {"verify_key", "manifest_key", "locate"} <= set(keys)
    assert read.content_key not in keys.values()
    assert read.read_secret not in keys.values()
    text = verify.to_text()
    assert read.to_text() not in text
    assert len(set(keys.values())) == len(keys)
