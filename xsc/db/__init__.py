"""Adapters of the ordered key-value port, and the group commit above it."""
