"""XSC: peer-to-peer storage and compute for a small circle of known nodes."""

__version__ = "0.1.0"
