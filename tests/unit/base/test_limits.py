"""Bounds that must agree with each other."""

from __future__ import annotations

from xsc.base import limits


def test_every_bound_is_a_positive_integer():
    bounds = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert bounds
    assert all(type(value) is int and value > 0 for value in bounds.values())


def test_a_request_of_one_segment_fits_into_a_message():
    shard_bytes = limits.SEGMENT_BYTES // limits.DATA_SHARDS_DEFAULT
    assert limits.FRAME_HEADER_BYTES_MAX + shard_bytes < limits.PEER_BODY_BYTES_MAX
    assert limits.FRAME_HEADER_BYTES_MAX + limits.MANIFEST_BYTES_MAX < limits.PEER_BODY_BYTES_MAX
    assert limits.MODULE_BYTES_MAX + limits.FRAME_HEADER_BYTES_MAX < limits.PEER_BODY_BYTES_MAX


def test_a_record_fits_into_a_header():
    assert limits.RECORD_BYTES_MAX < limits.FRAME_HEADER_BYTES_MAX


def test_a_code_fits_into_its_field():
    total = limits.DATA_SHARDS_DEFAULT + limits.PARITY_SHARDS_DEFAULT
    assert total <= limits.SHARDS_MAX < 2**8


def test_what_a_job_may_use_by_default_is_within_what_any_may():
    assert limits.FUEL_DEFAULT <= limits.FUEL_MAX
    assert limits.MEMORY_BYTES_DEFAULT <= limits.MEMORY_BYTES_MAX
    assert limits.TIMEOUT_MS_DEFAULT <= limits.TIMEOUT_MS_MAX


def test_the_most_expensive_job_is_billed_within_64_bits():
    """Fuel steps are fuel times memory steps: a signed count must hold them."""
    steps = -(-limits.MEMORY_BYTES_MAX // limits.MEMORY_STEP_BYTES)
    assert limits.FUEL_DEFAULT * steps < 2**63
