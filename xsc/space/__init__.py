"""The replicated, signed key space of each node: records, heads, causality, cells."""
