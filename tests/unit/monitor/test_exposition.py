"""Metrics say what the API's document says, whatever names it holds."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from xsc.monitor.exposition import to_text

ROW = {"peer": "abc", "name": "bob", "state": "up", "up": True, "availability_ppm": 500_000}


def document(**given):
    empty = {name: [] for name in ("margins", "kinds", "leases", "peers", "events")}
    return {"status": {"uptime_s": 3, "home": "/home/me"}, **empty, **given}


def samples(told):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(to_text(told))
        for sample in family.samples
    }


@pytest.mark.parametrize(
    "name", ['x"} 1\nxsc_up{a="', "back\\slash", "\x1b[31m", "ü" * 10_000, "{}", ""]
)
def test_a_name_stays_a_label(name):
    found = samples(document(peers=[{**ROW, "name": name}]))
    assert found["xsc_peer_up", ("name", name), ("peer", "abc")] == 1
    assert len(found) == 3


def test_units_are_those_of_prometheus():
    found = samples(document(peers=[ROW], at_ms=1_500))
    assert found["xsc_peer_availability_ratio", ("name", "bob"), ("peer", "abc")] == 0.5
    assert found[("xsc_at_seconds",)] == 1.5
    assert found[("xsc_uptime_seconds",)] == 3


def test_what_is_unknown_or_text_is_no_metric():
    found = samples(document(peers=[{**ROW, "head_age_ms": None}]))
    assert not any("head_age" in name or "state" in name or "home" in name for name, *_ in found)


def test_events_are_counters_and_sums_of_nothing_are_left_out():
    row = {"event": "storage.put", "lines": 2, "size_bytes": 10, "fuel": 0}
    found = samples(document(events=[row]))
    label = ("event", "storage.put")
    assert found["xsc_event_lines_total", label] == 2
    assert found["xsc_event_size_bytes_total", label] == 10
    assert ("xsc_event_fuel_total", label) not in found


def test_the_help_of_a_metric_is_that_of_its_own_field():
    text = to_text(document(margins=[{"margin": 1, "objects": 2}]))
    assert "# HELP xsc_objects Own objects" not in text
