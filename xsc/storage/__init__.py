"""Objects as encrypted, erasure-coded shards on several hosts."""
