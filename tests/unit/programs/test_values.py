"""The acceptance list of the value store, under its own sentences."""

from __future__ import annotations

import math
import struct

import pytest

from xsc.base.errors import ArgumentInvalid
from xsc.programs.values import STORAGES, SlotMeta, ValueStore

METAS = [
    SlotMeta(0, "f64", 0),
    SlotMeta(1, "f64", 1),
    SlotMeta(2, "object", 0),
    SlotMeta(3, "f32", 0),
    SlotMeta(4, "i32", 2),
    SlotMeta(5, "u32", 0),
]
VALUES = {0: 3.14, 1: 2.71, 2: ("any", "thing"), 3: 0.5, 4: -7, 5: 7}


@pytest.fixture
def store():
    return ValueStore(METAS)


# `createValueStore(slotMeta)` allocates typed arrays with correct sizes


def sized(storage):
    """Offsets 0 and 4 of one storage give it five places, and the others none."""
    store = ValueStore([SlotMeta(7, storage, 4), SlotMeta(9, storage, 0)])
    assert {name: len(bank) for name, bank in store.banks.items()} == {
        name: 5 if name == storage else 0 for name in STORAGES
    }
    return store.banks[storage]


def test_f64_array_size_is_the_greatest_offset_and_one():
    """f64 array size = max(offset+1) for slots with storage="f64"."""
    bank = sized("f64")
    assert (bank.typecode, bank.itemsize) == ("d", 8)


def test_f32_array_size_is_the_greatest_offset_and_one():
    """f32 array size = max(offset+1) for slots with storage="f32"."""
    bank = sized("f32")
    assert (bank.typecode, bank.itemsize) == ("f", 4)


def test_i32_array_size_is_the_greatest_offset_and_one():
    """i32 array size = max(offset+1) for slots with storage="i32"."""
    bank = sized("i32")
    assert (bank.typecode, bank.itemsize) == ("i", 4)


def test_u32_array_size_is_the_greatest_offset_and_one():
    """u32 array size = max(offset+1) for slots with storage="u32"."""
    bank = sized("u32")
    assert (bank.typecode, bank.itemsize) == ("I", 4)


def test_objects_array_size_is_the_greatest_offset_and_one():
    """objects array size = max(offset+1) for slots with storage="object"."""
    assert isinstance(sized("object"), list)


# `write(slot, value)` stores value at correct (array, offset) per slotMeta[slot]


@pytest.mark.parametrize("meta", METAS, ids=lambda meta: f"{meta.slot} {meta.storage}")
def test_write_stores_the_value_at_the_correct_array_and_offset(store, meta):
    """`write(slot, value)` stores value at correct (array, offset) per slotMeta[slot]."""
    before = {name: list(bank) for name, bank in store.banks.items()}
    store.write(meta.slot, VALUES[meta.slot])
    before[meta.storage][meta.offset] = VALUES[meta.slot]
    assert {name: list(bank) for name, bank in store.banks.items()} == before


def test_numeric_values_go_to_the_correct_typed_array_at_the_correct_offset(store):
    """Numeric values go to correct typed array at correct offset."""
    store.write(4, -(2**31))
    assert store.banks["i32"].tobytes() == struct.pack("@3i", 0, 0, -(2**31))


def test_other_values_go_to_the_objects_array(store):
    """Non-numeric values (FieldHandles, buffers, etc.) go to objects array."""
    handle = object()
    store.write(2, handle)
    assert store.banks["object"][0] is handle


# `write(slot, value)` enforces single-writer


@pytest.mark.parametrize("slot", VALUES)
def test_a_second_write_in_one_frame_throws_and_its_message_includes_the_slot(store, slot):
    """`write(slot, value)` enforces single-writer: throws error if slot written twice."""
    store.write(slot, VALUES[slot])
    with pytest.raises(ArgumentInvalid, match=f"slot {slot} already written this frame"):
        store.write(slot, VALUES[slot])
    assert store.read(slot) == VALUES[slot]


def test_write_tracking_resets_on_clear(store):
    """Write tracking resets on `clear()`."""
    store.write(0, 3.14)
    store.clear()
    store.write(0, 1.5)
    assert store.read(0) == 1.5
    with pytest.raises(ArgumentInvalid, match="slot 0 already written"):
        store.write(0, 1.5)


# `read(slot)` retrieves value from correct (array, offset) per slotMeta[slot]


@pytest.mark.parametrize("slot", VALUES)
def test_read_after_write_returns_the_correct_value(store, slot):
    """`read(slot)` retrieves value from correct (array, offset) per slotMeta[slot]."""
    for other, value in VALUES.items():
        store.write(other, value)
    assert store.read(slot) == VALUES[slot]


def test_read_returns_the_correct_value_type(store):
    """Returns correct value type (number for typed arrays, object for object array)."""
    for slot, value in VALUES.items():
        store.write(slot, value)
    assert [type(store.read(slot)) for slot in VALUES] == [float, float, tuple, float, int, int]


# `clear()` resets write tracking for new frame


def test_clear_empties_the_write_tracking(store):
    """Write tracking set emptied."""
    for slot, value in VALUES.items():
        store.write(slot, value)
    assert all(store.written(slot) for slot in VALUES)
    store.clear()
    assert not any(store.written(slot) for slot in VALUES)


def test_clear_keeps_the_values_in_the_arrays(store):
    """Values in arrays NOT cleared (optimization: old values overwritten on next write)."""
    for slot, value in VALUES.items():
        store.write(slot, value)
    store.clear()
    assert {slot: store.read(slot) for slot in VALUES} == VALUES


# Unit tests


def test_allocation_from_various_slot_metas():
    """Allocation from various slotMeta configurations."""
    for count in (1, 2, 17):
        for storage in STORAGES:
            metas = [SlotMeta(3 * n, storage, count - 1 - n) for n in range(count)]
            assert len(ValueStore(metas).banks[storage]) == count


def test_empty_slot_meta_works_without_error():
    """Empty slotMeta (no slots) works without error."""
    store = ValueStore([])
    store.clear()
    assert [len(bank) for bank in store.banks.values()] == [0] * 5
    for use in (store.read, store.written, lambda slot: store.write(slot, 1)):
        with pytest.raises(ArgumentInvalid, match="slot 0 not found"):
            use(0)


def test_slot_indices_may_have_gaps():
    """Slot indices may have gaps (e.g., slots 0, 2, 5 exist but not 1, 3, 4)."""
    store = ValueStore([SlotMeta(5, "i32", 0), SlotMeta(0, "i32", 1), SlotMeta(2**40, "i32", 2)])
    for slot in (0, 5, 2**40):
        store.write(slot, slot % 1000)
    assert [store.read(slot) for slot in (5, 0, 2**40)] == [5, 0, 2**40 % 1000]
    for slot in (1, 3, 4, -1):
        with pytest.raises(ArgumentInvalid, match=f"slot {slot} not found in slot_meta"):
            store.write(slot, 1)


def test_a_write_to_an_unknown_slot_marks_nothing():
    store = ValueStore([SlotMeta(0, "i32", 0)])
    for _ in range(2):
        with pytest.raises(ArgumentInvalid, match="slot 1 not found"):
            store.write(1, 1)


@pytest.mark.parametrize(
    ("slot", "value"),
    [
        *[(4, value) for value in (1.5, 1.0, 2**31, -(2**31) - 1, True, "1", None)],
        *[(5, value) for value in (-1, 2**32, 1.5, True, b"1")],
        *[(3, value) for value in (0.1, 1e39, -1e39, 2**24 + 1, True, "1")],
        *[(0, value) for value in (2**53 + 1, 10**400, True, "1", None)],
    ],
)
def test_there_is_no_implicit_casting(store, slot, value):
    """Type coercion: ensure f64/f32 distinction respected (no implicit casting)."""
    store.write(slot, VALUES[slot])
    store.clear()
    with pytest.raises(ArgumentInvalid):
        store.write(slot, value)
    assert store.read(slot) == VALUES[slot]
    assert not store.written(slot)


def test_a_nan_is_stored_as_the_canonical_one(store):
    payload = struct.unpack(">d", bytes.fromhex("fff8000000000001"))[0]
    store.write(0, payload)
    assert store.banks["f64"][:1].tobytes()[::-1].hex() == "7ff8000000000000"
    store.write(3, payload)
    assert math.isnan(store.read(3))


def test_zero_keeps_its_sign(store):
    store.write(0, -0.0)
    store.write(3, -0.0)
    assert [math.copysign(1, store.read(slot)) for slot in (0, 3)] == [-1, -1]


def test_a_slot_is_not_read_before_it_was_written(store):
    for slot in VALUES:
        with pytest.raises(ArgumentInvalid, match=f"slot {slot} is read before"):
            store.read(slot)
    store.clear()
    with pytest.raises(ArgumentInvalid, match="slot 0 is read before"):
        store.read(0)
