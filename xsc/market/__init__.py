"""Quotes, auctions, leases and what is owed under them."""
