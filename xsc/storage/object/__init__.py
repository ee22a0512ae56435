"""Objects as values: segments, codes, manifests, placements and what hosts hold. No I/O."""
