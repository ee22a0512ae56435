"""Carries bytes between addresses: HTTP, TLS, and a network in memory."""
