"""make sim: the rules of allocation alone, for growing networks, in plain Python.

Prints rounds until nothing changes, messages a node and time, first for growing networks in which
a node recognises as many others as before, then for growing recognition in networks of one size.
Writes the same as a picture (docs/allocation-sim.svg).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from random import Random
from typing import Final

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.sim.rules import random_market

PICTURE: Final = Path(__file__).parent.parent / "docs" / "allocation-sim.svg"
SIZES: Final = (125, 250, 500, 1000)
DEGREES: Final = (5, 10, 20, 40)
DEGREE: Final = 20
NODES: Final = 250
WIDTH, HEIGHT, MARGIN = 300, 200, 44


def play(nodes: int, degree: int) -> tuple[int, int, int, float]:
    """Return the average degree, rounds, messages a node, and the share of needs in percent."""
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
    return recognised, rounds, messages, share


def panel(left: int, title: str, axis: str, points: list[tuple[int, int]]) -> str:
    """Return one diagram of messages a node."""
    across = max(x for x, _ in points)
    up = max(y for _, y in points) * 1.15
    inner_width, inner_height = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN

    def place(x: float, y: float) -> tuple[float, float]:
        return left + MARGIN + x * inner_width / across, HEIGHT - MARGIN - y * inner_height / up

    line = " ".join(f"{x:.0f},{y:.0f}" for x, y in (place(*point) for point in points))
    marks = "".join(
        f'<circle cx="{x:.0f}" cy="{y:.0f}" r="3" fill="#06c"/>'
        f'<text x="{x:.0f}" y="{y - 8:.0f}" text-anchor="middle">{value}</text>'
        f'<text x="{x:.0f}" y="{HEIGHT - MARGIN + 14}" text-anchor="middle">{at}</text>'
        for (at, value), (x, y) in ((point, place(*point)) for point in points)
    )
    bottom, start = HEIGHT - MARGIN, left + MARGIN
    return (
        f'<text x="{left + WIDTH // 2}" y="18" text-anchor="middle" font-weight="bold">{title}'
        f'</text><path d="M{start} {MARGIN}V{bottom}H{left + WIDTH - MARGIN}" stroke="#888" '
        f'fill="none"/><polyline points="{line}" fill="none" stroke="#06c" stroke-width="2"/>'
        f'{marks}<text x="{left + WIDTH // 2}" y="{HEIGHT - 8}" text-anchor="middle">{axis}</text>'
    )


def main() -> None:
    """Play all sizes and degrees."""
    print(" nodes  degree  rounds  messages  ms a node  served %  over need")
    grown = [(nodes, play(nodes, DEGREE)[2]) for nodes in SIZES]
    wider = []
    for degree in DEGREES:
        recognised, _, messages, _ = play(NODES, degree)
        wider.append((recognised, messages))
    PICTURE.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11">'
        '<rect width="100%" height="100%" fill="white"/>'
        + panel(0, "messages a node, degree about 20", "nodes", grown)
        + panel(WIDTH, f"messages a node, {NODES} nodes", "recognised by a node", wider)
        + "</svg>\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
