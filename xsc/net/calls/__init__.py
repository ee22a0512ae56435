"""Signed calls: frames, signatures, replay protection, quotas, batching."""
