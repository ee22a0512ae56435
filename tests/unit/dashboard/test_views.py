"""How values are written in a page: what peers say stays a text."""

from __future__ import annotations

import pytest

from xsc.dashboard import views
from xsc.dashboard.source import sourced

ENVIRONMENT = views.environment()


def rendered(template, **values):
    return ENVIRONMENT.from_string(template).render(values)


@pytest.mark.parametrize(
    ("filter_", "number", "text"),
    [
        ("size", 1536, "1.5 KiB"),
        ("credits", -250_000, "-0.250000"),
        ("share", 999_000, "99.9%"),
        ("duration", 61_000, "1m 1s"),
        ("moment", 0, "1970-01-01 00:00:00 UTC"),
        ("grouped", 1_234_567, "1,234,567"),
        ("level('storage')", 64 << 20, "64.0 MiB"),
        ("level('compute')", 20_000_000, "20 Mfuel/s"),
    ],
)
def test_a_number_is_shown_in_its_unit_with_its_origin(filter_, number, text):
    of = sourced({"n": number}, "/v1/x#")
    shown = f'<data value="{number}" data-from="/v1/x#/n">{text}</data>'
    assert rendered("{{ n|" + filter_ + " }}", **of) == shown
    assert rendered("{{ n|" + filter_ + " }}", n=number) == text
    assert rendered("{{ n|" + filter_ + " }}", n=None) == "–"


def test_a_total_is_shown_with_all_its_origins():
    of = sourced({"rows": [{"n": 1024}, {"n": 1024}]}, "/v1/x#")
    assert rendered("{{ rows|map(attribute='n')|total|size }}", **of) == (
        '<data value="2048" data-from="/v1/x#/rows/0/n /v1/x#/rows/1/n">2.0 KiB</data>'
    )


HOSTILE = ["<script>alert(1)</script>", "<b>" * 10_000, '" onload="x', "\x1b[2J", "\u202eevil"]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("template", ["{{ t }}", "{{ t|node }}", "{{ t|node('a') }}"])
def test_a_text_of_a_peer_is_escaped_cut_and_printable(text, template):
    found = rendered(template, t=text).removeprefix('<span class="node" title="')
    found = found.removesuffix("</span>").replace('">', "", 1 if "node" in template else 0)
    assert not {"<", ">", '"', "\x1b", "\u202e"} & {*found}
    assert len(found) < 3 * 5 * views.CHARS_MAX


def test_a_text_that_is_to_be_copied_is_whole():
    text = "x" * 5_000
    assert rendered("{{ t|whole }}", t=text) == text
    assert "<" not in rendered("{{ t|whole }}", t="<b>")


def test_a_link_is_whole_and_has_nothing_that_html_reads():
    found = rendered("<a href='/x?a=1{{ '&b=' ~ t|urlencode }}'>", t="ä/&\"'<" * 100)
    assert found == f"<a href='/x?a=1&amp;b={'%C3%A4/%26%22%27%3C' * 100}'>"


def test_a_node_has_its_name_or_the_beginning_of_its_id():
    assert rendered("{{ 'anna'|node('abc') }}") == '<span class="node" title="abc">anna</span>'
    assert ">aaaaaaaaaa<" in rendered("{{ n|node(id) }}", n=None, id="a" * 52)
    assert rendered("{{ n|node }}", n=None) == "–"


def test_a_bar_is_never_longer_than_its_whole():
    lengths = [views.part_of(part, 100, 1_000) for part in (-5, 0, 50, 100, 10**30)]
    assert lengths == [0, 0, 500, 1_000, 1_000]
    assert views.part_of(5, 0, 1_000) == 0
