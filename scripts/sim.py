"""make sim: allocation in growing networks, by the rules alone and by whole nodes.

The rules alone, in plain Python, for up to 1,000 nodes; then whole nodes in one process, on the
clock of a simulation, for up to 50. Of both: first growing networks in which a node recognises as
many others as before, then growing recognition in networks of one size. Prints messages a node and
time, and writes them as a picture (docs/allocation-sim.svg). Takes some minutes.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from random import Random
from typing import Final, TypeAlias

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.sim.markets import settle
from tests.sim.rules import random_market

PICTURE: Final = Path(__file__).parent.parent / "docs" / "allocation-sim.svg"
SIZES: Final = (125, 250, 500, 1000)
DEGREES: Final = (5, 10, 20, 40)
DEGREE: Final = 20
NODES: Final = 250
SERVICE_SIZES: Final = (10, 20, 35, 50)
SERVICE_DEGREES: Final = (2, 4, 8)
SERVICE_DEGREE: Final = 4
SERVICE_NODES: Final = 50
WIDTH, HEIGHT, MARGIN = 300, 200, 44

Points: TypeAlias = list[tuple[int, int]]


def play(nodes: int, degree: int) -> tuple[int, int]:
    """Play the rules alone; return the average degree, and the messages a node."""
    market = random_market(Random(13), nodes, degree)
    before = time.process_time()
    rounds = market.settle()
    spent = time.process_time() - before
    recognised = sum(map(len, market.weights)) // nodes
    messages = sum(market.messages) // nodes
    share = 100 * sum(market.served()) / sum(market.need)
    over = sum(units > need for units, need in zip(market.served(), market.need, strict=True))
    print(
        f"{nodes:6} {recognised:7} {rounds:7} {messages:9} {1000 * spent / nodes:9.1f} "
        f"{share:8.1f} {over:9}"
    )
    return recognised, messages


def serve(nodes: int, degree: int) -> tuple[int, int]:
    """Play whole nodes; return the messages a node, and the milliseconds until they settled."""
    before = time.process_time()
    settled = settle(nodes, degree)
    spent = time.process_time() - before
    share = 100 * settled.served / settled.needed
    print(
        f"{nodes:6} {degree:7} {settled.time_ms / 1000:7.1f} {settled.messages:9} "
        f"{1000 * spent / nodes:9.1f} {share:8.1f} {settled.over:9}",
        flush=True,
    )
    return settled.messages, settled.time_ms


def panel(place: tuple[int, int], title: str, axis: str, points: Points) -> str:
    """Return one diagram; place is its column and row."""
    left, top = place[0] * WIDTH, place[1] * HEIGHT
    across = max(x for x, _ in points)
    up = max(y for _, y in points) * 1.15
    inner_width, inner_height = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    bottom, start = top + HEIGHT - MARGIN, left + MARGIN

    def at(x: float, y: float) -> tuple[float, float]:
        return start + x * inner_width / across, bottom - y * inner_height / up

    line = " ".join(f"{x:.0f},{y:.0f}" for x, y in (at(*point) for point in points))
    marks = "".join(
        f'<circle cx="{x:.0f}" cy="{y:.0f}" r="3" fill="#06c"/>'
        f'<text x="{x:.0f}" y="{y - 8:.0f}" text-anchor="middle">{value}</text>'
        f'<text x="{x:.0f}" y="{bottom + 14}" text-anchor="middle">{number}</text>'
        for (number, value), (x, y) in ((point, at(*point)) for point in points)
    )
    return (
        f'<text x="{left + WIDTH // 2}" y="{top + 18}" text-anchor="middle" font-weight="bold">'
        f'{title}</text><path d="M{start} {top + MARGIN}V{bottom}H{left + WIDTH - MARGIN}" '
        f'stroke="#888" fill="none"/><polyline points="{line}" fill="none" stroke="#06c" '
        f'stroke-width="2"/>{marks}<text x="{left + WIDTH // 2}" y="{top + HEIGHT - 8}" '
        f'text-anchor="middle">{axis}</text>'
    )


def rules_alone() -> list[str]:
    """Play the rules alone, and return the first row of diagrams."""
    print("The rules alone\n nodes  degree  rounds  messages  ms a node  served %  over need")
    grown = [(nodes, play(nodes, DEGREE)[1]) for nodes in SIZES]
    wider = [play(NODES, degree) for degree in DEGREES]
    return [
        panel((0, 0), "rules: messages a node, degree about 20", "nodes", grown),
        panel((1, 0), f"rules: messages a node, {NODES} nodes", "recognised by a node", wider),
    ]


def whole_nodes() -> list[str]:
    """Play whole nodes, and return two rows of diagrams."""
    print("Whole nodes\n nodes  degree       s  messages  ms a node  served %  over need")
    grown = {nodes: serve(nodes, SERVICE_DEGREE) for nodes in SERVICE_SIZES}
    wider = {
        degree: (grown[SERVICE_NODES] if degree == SERVICE_DEGREE else serve(SERVICE_NODES, degree))
        for degree in SERVICE_DEGREES
    }
    found = []
    columns = (
        (grown, f"degree {SERVICE_DEGREE}", "nodes"),
        (wider, f"{SERVICE_NODES} nodes", "recognised by a node"),
    )
    for column, (played, fixed, axis) in enumerate(columns):
        messages = [(number, each[0]) for number, each in played.items()]
        times = [(number, each[1]) for number, each in played.items()]
        found += [
            panel((column, 1), f"whole nodes: messages a node, {fixed}", axis, messages),
            panel((column, 2), f"whole nodes: ms until at rest, {fixed}", axis, times),
        ]
    return found


def main() -> None:
    """Play all sizes and degrees."""
    panels = rules_alone() + whole_nodes()
    PICTURE.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {3 * HEIGHT}" '
        'font-family="sans-serif" font-size="11">'
        '<rect width="100%" height="100%" fill="white"/>' + "".join(panels) + "</svg>\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
