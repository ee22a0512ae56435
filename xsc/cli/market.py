"""xsc market and xsc allocation: what nodes offer, need, ask and agree, who is granted what."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
from click import argument, option

from xsc import api
from xsc.base import errors, limits, units
from xsc.cli import options, show
from xsc.cli.options import Group, Settings, asks
from xsc.client.core import Document

KINDS = ("storage", "compute")


SLOT = options.Parsed("ID", str, options.known(lambda: [(api.market.SLOTS, "id")]))
_slot = argument("id", metavar="ID", type=SLOT)


@click.group(cls=Group)
def market() -> None:
    """Offer capacity and state needs; show prices and leases."""


_RATE = re.compile(r"([0-9]{1,30})(|k|M|G|T)fuel/s")
_WORKERS = re.compile(r"([0-9]{1,12})workers?")
_TIMES: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_EXAMPLES: Final = "write for example 100GiB, 2workers or 500Mfuel/s"


def _quantity(text: str) -> options.Fields:
    """Return a level: bytes of a size such as 100GiB, a rate such as 500Mfuel/s, or workers."""
    if found := _WORKERS.fullmatch(text):
        return options.Fields(workers=int(found[1]))
    if found := _RATE.fullmatch(text):
        return options.Fields(quantity=int(found[1]) * _TIMES[found[2]], unit="fuel_per_s")
    if not re.search("[A-Za-z]", text):
        raise errors.ArgumentInvalid(f"'{text}' has no unit", hint=_EXAMPLES)
    try:
        return options.Fields(quantity=units.parse_size(text), unit="bytes")
    except errors.ArgumentInvalid:
        raise errors.ArgumentInvalid(f"'{text}' is no quantity", hint=_EXAMPLES) from None


def _offered(text: str) -> options.Fields:
    return options.Fields(standing=True) if text == "all" else _quantity(text)


def _moment(text: str) -> int:
    """Return a moment in milliseconds.

    Raises:
        ArgumentInvalid: it is none.
    """
    now_ms = time.time_ns() // 1_000_000
    if text == "now":
        return now_ms
    if text.startswith("+"):
        return now_ms + units.parse_duration_ms(text[1:])
    try:
        found = datetime.fromisoformat(text)
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found
        moment_ms = (found - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        moment_ms = -1
    if moment_ms < 0:
        raise errors.ArgumentInvalid(
            f"'{text}' is no time",
            hint="write for example now, +2h, 2027-03-01 or 2027-03-01T20:00+01:00",
        )
    return moment_ms


MOMENT = options.Parsed("TIME", _moment)
QUANTITY = options.Parsed("QUANTITY", _quantity)
_stated: Final = options.together(
    option("--from", "from_ms", type=MOMENT, help="When it begins; now by default."),
    option("--to", "to_ms", type=MOMENT, help="When it ends."),
    option("--every", metavar="RULE", help='When it recurs: "Mon-Fri 20:00-08:00 ZONE".'),
    option(
        "--price",
        "price_micro",
        type=options.CREDITS,
        help="Credits a GiB and hour, or a Gfuel: the reserve, or the most paid.",
    ),
    options.table(
        "filter",
        "--filter",
        "filters",
        type=options.PAIR,
        help="What the other side must be: node=PEER, owner=LABEL, location=SITE, tier=mutual or"
        " tier=one_way; may be given again.",
    ),
    option("--location", metavar="SITE", help="Where it is, or must be."),
)
_RULE: Final = option(
    "--rule",
    type=click.Choice(("weighted-uniform", "proportional")),
    help="How an offer is divided within a tier.",
)

_SPREAD: Final = option(
    "--spread",
    type=click.IntRange(1),
    metavar="N",
    help="Over how many providers a need goes, none with more than its share of it; of storage 6"
    " by default, as an object needs.",
)


_level = argument("kind", metavar="KIND", type=click.Choice(KINDS))


@asks(market, api.market.DECLARE, always={"role": "offer"})
@_level
@argument("quantity", metavar="QUANTITY", type=options.Parsed("QUANTITY", _offered))
@_stated
@_RULE
def offer(answer: Document) -> str:
    """Offer capacity ahead of use, and print the id of the slot.

    KIND is storage or compute. QUANTITY is what is held at any moment: a size
    such as 100GiB, a rate such as 500Mfuel/s, or 2workers. Without --price
    the node asks what it asks now. QUANTITY `all` brings back the offer of
    everything that a node makes by default, after it was edited or withdrawn.
    """
    return _declared(answer, "all of it comes to")


@asks(market, api.market.DECLARE, always={"role": "need"})
@_level
@argument("quantity", metavar="QUANTITY", type=QUANTITY)
@_stated
@_SPREAD
def need(answer: Document) -> str:
    """State a need ahead of use, and print its id.

    KIND and QUANTITY are those of `xsc market offer`. Without times it is there
    until it is withdrawn; with --from alone it ends in 90 days. Without --price
    it pays at most what the node pays at most. Storage is counted as it is kept
    at providers: six of them keep an object with half as much again.
    """
    return _declared(answer, "it comes to at most")


def _declared(answer: Document, comes: str) -> str:
    day = units.format_credits(answer["day_micro"])
    month = units.format_credits(answer["month_micro"])
    show.note(f"{comes} {day} credits within a day, {month} within 30 days")
    if (size := answer["object_bytes"]) is not None:
        fits = f"objects of {units.format_size(size)} in all fit in it"
        show.note(f"it goes over {answer['spread']} providers: {fits}")
    edit(answer)
    return str(answer["id"])


@asks(market, api.market.EDIT)
@_slot
@option("--quantity", metavar="QUANTITY", type=QUANTITY, help="How much it is.")
@_stated
@_RULE
@_SPREAD
def edit(answer: Document) -> None:
    """Change an offer or a need; what is not given stays as it is.

    A need whose quantity, price or times change is a new one to its providers.
    """
    for sentence in answer["warnings"]:
        show.warn(sentence)


@asks(market, api.market.WITHDRAW)
@_slot
def withdraw(_: Document) -> None:
    """Withdraw an offer or a need. What is used of leases under it stays."""


def _next_window(windows: list[list[int]]) -> tuple[str, str]:
    """Return when the next window begins and ends."""
    end = show.moment(windows[0][1]) if windows else "never"
    return ("always", "") if end == "never" else (show.moment(windows[0][0]), end)


@asks(market, api.market.SLOTS)
def slots(answer: Document) -> None:
    """List offers and needs: those of this node, and those of peers that it follows."""
    empty = "nobody offers or needs anything; this node offers what it has once it has a peer"
    show.rows(
        answer["slots"],
        "id role origin node kind <quantity <granted <used <price next_window until <windows",
        empty,
        id=("id", show.short),
        next_window=("windows", lambda windows: _next_window(windows)[0]),
        until=("windows", lambda windows: _next_window(windows)[1]),
        windows=("windows", lambda windows: str(len(windows))),
    )


@market.command()
@argument("kind", metavar="[KIND]", required=False, type=click.Choice(KINDS))
@option("--size", "size_bytes", type=options.SIZE, help="Say what it costs to store so much.")
@option("--for", "duration_ms", type=options.DURATION, help="For how long.  [30d]")
@option("--code", metavar="K,M", help="K data shards and M parity shards.  [4,2]")
@option("--fuel", type=options.FUEL, help="Say what so much fuel costs, as 1e12.")
@option("--memory", "memory_bytes", type=options.SIZE, help="Under that memory limit.  [64MiB]")
def quote(settings: Settings, /, kind: str | None, **asked: Any) -> None:  # noqa: ANN401
    """Show what all peers ask now, without an order; KIND is storage or compute.

    With --size or --fuel, say what that would cost at these prices.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    if not given:
        answer = settings.ask(api.market.QUOTES)
        if kind is not None:
            answer["quotes"] = [row for row in answer["quotes"] if row["kind"] == kind]
        settings.view(answer)
        show.rows(
            answer["quotes"],
            "node kind <available <price <reserve for_a tier slot",
            "nobody offers anything",
            for_a=("kind", _unit),
        )
        return
    priced = given.keys() & {"size_bytes", "fuel"}
    if not priced:
        raise errors.ArgumentInvalid("nothing is to be priced", hint="say --size or --fuel")
    if kind is not None and priced != {"size_bytes" if kind == "storage" else "fuel"}:
        raise errors.ArgumentInvalid(f"that is no {kind}", hint="leave the kind out to price both")
    found = settings.ask(api.market.ESTIMATE, **given)
    settings.view(found)
    _show_cost(given, found)


def _unit(kind: api.market.Kind) -> str:
    from xsc.terms.quote import UNITS

    return UNITS[kind]


def _show_cost(asked: Document, found: Document) -> None:
    pairs = []
    if size := asked.get("size_bytes"):
        coded = f"{units.format_size(found['coded_bytes'])} coded {found['code']}"
        pairs += [
            ("stored", f"{units.format_size(size)}, which is {coded}"),
            ("for", units.format_duration(found["hours"] * limits.EPOCH_MS)),
            ("price", f"{_price('storage', found['storage_price_micro'])} at most"),
            ("storage", f"{units.format_credits(found['storage_micro'])} credits"),
        ]
    if fuel := asked.get("fuel"):
        memory = units.format_size(asked.get("memory_bytes", limits.MEMORY_BYTES_DEFAULT))
        pairs += [
            ("run", f"{fuel} fuel under a memory limit of {memory}"),
            ("price", _price("compute", found["compute_price_micro"])),
            ("compute", f"{units.format_credits(found['compute_micro'])} credits"),
        ]
    show.pairs([*pairs, ("total", f"{units.format_credits(found['total_micro'])} credits")])


def _price(kind: api.market.Kind, price_micro: int) -> str:
    return f"{units.format_credits(price_micro)} credits a {_unit(kind)}"


def _lease_level(row: Document) -> str:
    """Return what a lease is over."""
    return "-" if row["origin"] == "now" else units.format_level(row["kind"], row["quantity"])


def _lease_use(row: Document) -> str:
    """Return what is used of a lease: bytes, or fuel times 64 MiB steps in millions."""
    storage = row["kind"] == "storage"
    return units.format_size(row["held"]) if storage else f"{row['used'] // limits.MFUEL} M"


@asks(market, api.market.LEASES)
def leases(answer: Document) -> None:
    """List the leases that this node has given and taken."""
    show.rows(
        answer["leases"],
        "lease role peer kind origin <used <of <price <owed=billed <settled state until=end",
        "this node has no leases",
        lease=("lease_id", show.short),
        used=_lease_use,
        of=_lease_level,
    )


@asks(market, api.market.LEASE)
@argument("id", metavar="LEASE", type=options.LEASE)
@options.output_option
@option("--denial", is_flag=True, help="The host's signed count without it.")
def lease(_: Document) -> None:
    """Write a signed lease to a file, for `xsc verify --lease`.

    LEASE is its id, or the beginning of it.
    """


@asks(market, api.market.ACCOUNT)
@argument("id", metavar="PEER", type=options.PEER)
@options.output_option
@option("--count", is_flag=True, help="The provider's signed count that it pays.")
def account(_: Document) -> None:
    """Write the newest voucher of this node for PEER to a file, for `xsc verify`."""


_TIERS = {
    "mutual": "mutual: the two recognise each other",
    "one_way": "one_way: the provider recognises the customer",
    "open": "open: the provider does not recognise the customer",
}


_EXPLAINED: Final = options.known(
    lambda: [
        (api.market.SLOTS, "id"),
        (api.market.LEASES, "lease_id"),
        (api.peers.LIST, "name"),
    ]
)


@market.command()
@argument("some_id", metavar="ID|NODE", type=options.Parsed("ID|NODE", str, _EXPLAINED))
def why(settings: Settings, some_id: str) -> None:
    """Explain a lease, a need, an offer or a clearing, and what would change it.

    ID is its id, or the beginning of it. NODE is a peer: what it was granted
    here, and what it grants to this node. The price of a lease is explained from
    what both sides have signed; what a need was granted, from the clearing
    records of its providers, recomputed first.
    """
    calls = settings.calls()
    answer = calls.ask(api.market.WHY, id=some_id)
    try:
        with calls.download(api.market.LEASE, id=some_id) as download:
            raw = b"".join(download)
    except (errors.ArgumentInvalid, errors.NotFound):  # a name need not look like the id of a lease
        settings.view(answer)
        explain(answer)
    else:
        _show_price(settings, raw, answer["passed_over"])


def _show_price(settings: Settings, raw: bytes, passed_over: list[Document]) -> None:
    from xsc.base.ids import to_text
    from xsc.node.offline.verify import explain_price

    asked, because = explain_price(raw)
    answer = {
        "provider": to_text(asked.provider),
        "customer": to_text(asked.customer),
        "kind": asked.kind,
        "price_micro": asked.price,
        "tier": asked.tier,
        "slot": to_text(asked.slot),
        "need": None if asked.need is None else to_text(asked.need),
        "why": because,
        "passed_over": passed_over,
    }
    settings.view(answer)
    show.fields(
        answer,
        "provider customer price tier slot need why",
        price=lambda _: _price(asked.kind, asked.price),
        tier=("tier", _TIERS.__getitem__),
    )
    for row in passed_over:
        show.line(f"passed over  {row['reason']}")


@asks(market, api.market.CLEARINGS)
def clearings(answer: Document) -> None:
    """List the clearings of this node's slots that are kept."""
    show.rows(
        answer["clearings"],
        "clearing slot kind when=at rule",
        "nothing was cleared here",
        clearing=("id", show.short),
    )


@asks(market, api.market.CLEARING)
@argument("id", metavar="ID")
@options.output_option
def clearing(_: Document) -> None:
    """Write a signed clearing record to a file, which `xsc verify` recomputes.

    ID is that of the clearing, or the beginning of it.
    """


# What is granted ahead of use


def _time(window: list[int]) -> str:
    end = show.moment(window[1])
    return "always" if end == "never" else f"{show.moment(window[0])} to {end}"


@click.group(cls=Group)
def allocation() -> None:
    """Show what slots grant to needs ahead of use, to whom, and why."""


@asks(allocation, api.market.SHOW, name="show")
def show_all(answer: Document) -> None:
    """Show what was cleared, here and by the nodes that this one follows."""
    show.table(
        [
            *("slot", "node", "kind", "window", "<capacity", "customer", "tier", "<granted"),
            *("<leased", "<price", "lapses"),
        ],
        [
            [
                show.short(slot["slot"]),
                show.named(slot, "node"),
                slot["kind"],
                _time(slot["window"]),
                units.format_level(slot["kind"], slot["capacity"]),
                *cells,
            ]
            for slot in answer["slots"]
            for cells in _granted(slot)
        ],
        "nothing was cleared: no known need matches what is offered",
    )
    if answer["slots"]:
        show.line()
        show.table(
            ("slot", "node", "kind", "mutual (m), one way (w), open (o), pinned (p)"),
            [
                (show.short(slot["slot"]), show.named(slot, "node"), slot["kind"], _bar(slot))
                for slot in answer["slots"]
            ],
            "",
        )
        show.line()
    show.line(f"converged: {'yes' if answer['converged'] else 'no'}")
    show.line(f"network, as far as known: {'yes' if answer['network_converged'] else 'no'}")
    if answer["program_fault"]:
        show.line(
            f"nothing new is granted: the allocation program fails: {answer['program_fault']}"
        )


def _granted(slot: Document) -> list[list[str]]:
    """Return who has what of a slot, at the price that is charged."""
    kind = slot["kind"]
    rows = [
        [
            show.named(line, "node"),
            line["tier"],
            units.format_level(kind, line["quantity"]),
            units.format_level(kind, line["drawn"]),
            units.format_credits(line["price"]),
            _lapses(line),
        ]
        for line in slot["allocations"]
    ]
    rows += [
        [show.named(line, "node"), "pinned", "", units.format_level(kind, line["quantity"]), "", ""]
        for line in slot["pinned"]
    ]
    return rows or [["nobody", *[""] * 5]]


def _lapses(line: Document) -> str:
    """Return when an offer that is not leased lapses; nothing where none is made."""
    if line.get("granted_ms") == 0 or line["drawn"] >= line["quantity"]:
        return ""
    return show.moment(line["until_ms"])


def _bar(slot: Document) -> str:
    """Return what the tiers have of a slot's capacity as a bar, a letter each at least."""
    of_tier = {tier["tier"]: tier["given"] for tier in slot["tiers"]}
    of_tier["pinned"] = sum(line["quantity"] for line in slot["pinned"])
    whole = max(1, slot["capacity"] + of_tier["pinned"])
    bar, taken = "", 0
    for tier, quantity in of_tier.items():
        taken += quantity
        cells = max(len(bar) + (quantity > 0), _BAR_CELLS * taken // whole)
        bar = bar.ljust(min(cells, _BAR_CELLS), _LETTERS[tier])
    return bar.ljust(_BAR_CELLS, ".")


_BAR_CELLS: Final = 40
_LETTERS: Final = {"mutual": "m", "one_way": "w", "open": "o", "pinned": "p"}
"""What stands in a bar for each tier."""


@asks(allocation, api.market.GROUPS)
def groups(answer: Document) -> None:
    """Show who recognises whom, who offers, who needs and who is there."""
    names = answer["names"]
    show.pairs(
        [
            (
                _GROUPS.get(group, group),
                ", ".join(names.get(node, show.short(node)) for node in nodes) or "nobody",
            )
            for group, nodes in answer["groups"].items()
        ]
    )


_GROUPS: Final = {
    "my_mutual_recognition": "recognise this node, and are recognised",
    "my_mutual_beneficiaries": "served here as mutual",
    "my_non_mutual_beneficiaries": "served here as recognised one way",
    "mutual_providers_for_me": "offer something, mutual",
    "non_mutual_providers_for_me": "offer something, and recognise this node",
    "mutual_beneficiaries_with_needs": "need something, mutual",
    "non_mutual_beneficiaries_with_needs": "need something, recognised one way",
    "all_mutual_partners": "mutual, also who offers and needs nothing",
    "active_participants": "offer or need something, and answer",
    "oscillating_participants": "damped, because their needs swing",
    "has_system_converged": "say that their allocation has converged",
}
"""The groups in words, by the names of the API."""


@asks(allocation, api.market.CONSISTENT)
def consistent(answer: Document) -> None:
    """Show which commitments are of one cut.

    A commitment is not where its author had heard something of another node
    that has not come here yet.
    """
    names = {row["node"]: show.named(row, "node") for row in answer["commitments"]}

    def unheard(row: Document) -> str:
        return ", ".join(names.get(node, show.short(node)) for node in row["unheard"])

    show.rows(
        answer["commitments"],
        "node written <offers <needs of_the_cut=consistent heard_more_of",
        "no commitment is known here",
        heard_more_of=unheard,
    )


def _show_entitled(answer: Document, empty: str) -> None:
    show.rows(
        answer["allocations"],
        "need node kind tier <granted=quantity <leased=drawn <price window lapses",
        empty,
        tier=lambda row: row["tier"] or "pinned",
        window=("window", _time),
        lapses=_lapses,
    )


@asks(allocation, api.market.EXPECTED)
def expected(answer: Document) -> None:
    """Show what the needs of this node are granted by others."""
    _show_entitled(answer, "nobody grants anything to needs of this node")


@asks(allocation, api.market.RECEIVED)
def received(answer: Document) -> None:
    """Show what the cleared leases of this node have."""
    _show_entitled(answer, "no lease was taken on an offer yet")


@asks(allocation, api.market.WHY, name="why")
@argument("id", metavar="NODE|SLOT")
def explain(answer: Document) -> None:
    """Explain what needs were granted, and what would have changed that.

    SLOT is the id of a slot, need or clearing, or the beginning of one. NODE is
    a peer: what it was granted here, and what it grants to this node.
    """
    for row in answer["passed_over"]:
        show.line(f"passed over: {row['reason']}")
    if not answer["why"] and not answer["passed_over"]:
        show.line("nobody that is known here offers or needs anything that this could be about")
    for number, row in enumerate(answer["why"]):
        if number:
            show.line("")
        show.pairs(_reasons(row))
    if answer["more"]:
        show.line("there is more than one answer holds: name one need, slot or clearing")


def _reasons(row: Document) -> list[tuple[str, str]]:
    kind = row["kind"]
    pairs = [
        ("customer", show.named(row, "node")),
        ("need", show.short(row["need"])),
        ("provider", row["provider_name"]),
        ("slot", show.short(row["slot"])),
    ]
    if row["clearing"] is not None:
        pairs += [("clearing", show.short(row["clearing"])), ("window", _time(row["window"]))]
    if row["granted"] is not None:
        share = "" if row["tier"] == "open" else f", {units.format_share(row['weight'])}"
        granted, eligible = (units.format_level(kind, row[of]) for of in ("granted", "eligible"))
        pairs += [("tier", f"{row['tier']}{share}"), ("granted", f"{granted} of {eligible}")]
    pairs += [("stage", _stage(kind, stage)) for stage in row["stages"]]
    pairs += [("because", row["because"])]
    return pairs + [("change", change) for change in row["changes"]]


def _stage(kind: str, stage: Document) -> str:
    quantity = units.format_level(kind, stage["quantity"])
    price = units.format_credits(stage["price"])
    return f"{quantity} as {stage['tier']}, at {price}"
