"""Who owes whom: mutual credit in entries that both parties signed."""
