"""Known peers: their registry, invitations and introductions."""
