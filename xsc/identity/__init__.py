"""Keys, signatures and signed envelopes."""
