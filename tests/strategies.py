"""One Hypothesis strategy a domain type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from xsc.base.encoding import Value

VECTORS = Path(__file__).parent / "vectors"


def vectors(name: str) -> Any:
    """Return the content of tests/vectors/<name>.json."""
    return json.loads((VECTORS / f"{name}.json").read_text())


def integers() -> st.SearchStrategy[int]:
    """All that can be encoded, and the edges where a head grows by a byte."""
    edges = [2**bits + offset for bits in (0, 5, 8, 16, 32, 63, 64) for offset in (-1, 0, 1)]
    edges = [edge for edge in [*edges, 23, 24] if edge < 2**64]
    return st.one_of(
        st.sampled_from([*edges, *(-1 - edge for edge in edges)]),
        st.integers(-(2**64), 2**64 - 1),
    )


def values() -> st.SearchStrategy[Value]:
    """Everything that can be encoded, a few levels deep."""
    leaves = st.one_of(
        st.none(), st.booleans(), integers(), st.text(max_size=40), st.binary(max_size=40)
    )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=6), st.dictionaries(st.text(max_size=6), inner, max_size=6)
        ),
        max_leaves=20,
    )


def digests() -> st.SearchStrategy[bytes]:
    """Ids, hashes and roots."""
    return st.binary(min_size=32, max_size=32)


def counts() -> st.SearchStrategy[int]:
    """Sizes, times and amounts."""
    return st.one_of(st.integers(0, 1000), st.integers(0, 2**63 - 1))
