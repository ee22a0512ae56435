"""Probes peers: which ones answer, how fast and how reliably."""
