"""Known peers: their roster, invitations and introductions."""
